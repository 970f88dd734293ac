//! Bounds-checked little-endian reader and writer. Every failure knows its byte offset.
//!
//! Variable-length integers are LEB128: seven bits a byte, least significant first, at most ten bytes,
//! and only the shortest encoding is accepted, so that equal values have equal bytes.

use crate::FormatError;

/// Reads fields from a byte slice and remembers where it is.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte to be read.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// True when all bytes have been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// The next `len` bytes, without copying.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if fewer than `len` bytes remain.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        if len > self.remaining() {
            return Err(FormatError::Truncated { offset: self.at, need: len - self.remaining(), what });
        }
        let out = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(out)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if fewer than `N` bytes remain.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N, what)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end of the buffer.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, FormatError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A 16-bit little-endian integer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end of the buffer.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// A 32-bit little-endian integer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end of the buffer.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit little-endian integer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end of the buffer.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit little-endian two's complement integer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end of the buffer.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, FormatError> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }

    /// A LEB128 integer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end, [`FormatError::OutOfRange`] if it is longer than needed or over 64 bits.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, FormatError> {
        let offset = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(FormatError::OutOfRange { offset, what, found: u64::from(byte) });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(FormatError::OutOfRange { offset, what, found: 0 });
                }
                return Ok(value);
            }
        }
        Err(FormatError::OutOfRange { offset, what, found: value })
    }

    /// A LEB128 integer that must not exceed `max`.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`FormatError::OutOfRange`] above `max`.
    pub fn varint_max(&mut self, max: u64, what: &'static str) -> Result<u64, FormatError> {
        let offset = self.at;
        let value = self.varint(what)?;
        if value > max {
            return Err(FormatError::OutOfRange { offset, what, found: value });
        }
        Ok(value)
    }

    /// A count of things of which each takes at least `min_bytes`; bounded by what the buffer can hold,
    /// so that a damaged count never makes a decoder reserve memory.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`FormatError::OutOfRange`] if that many cannot follow.
    pub fn count(&mut self, min_bytes: usize, what: &'static str) -> Result<usize, FormatError> {
        let offset = self.at;
        let found = self.varint(what)?;
        match usize::try_from(found) {
            Ok(n) if n <= self.remaining() / min_bytes.max(1) => Ok(n),
            _ => Err(FormatError::OutOfRange { offset, what, found }),
        }
    }

    /// A byte string preceded by its length.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] or [`FormatError::OutOfRange`].
    pub fn blob(&mut self, what: &'static str) -> Result<&'a [u8], FormatError> {
        let len = self.count(1, what)?;
        self.bytes(len, what)
    }

    /// UTF-8 text preceded by its length in bytes.
    ///
    /// # Errors
    /// As [`Self::blob`], and [`FormatError::BadText`] if it is not UTF-8.
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, FormatError> {
        let bytes = self.blob(what)?;
        std::str::from_utf8(bytes).map_err(|e| FormatError::BadText { what, detail: e.to_string() })
    }

    /// Ends the object: nothing may follow.
    ///
    /// # Errors
    /// [`FormatError::TrailingBytes`] if bytes remain.
    pub fn finish(&self, what: &'static str) -> Result<(), FormatError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(FormatError::TrailingBytes { what, extra }),
        }
    }
}

/// Appends fields to a byte vector, in the layouts [`Reader`] reads.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What has been written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What has been written so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True while nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends a 16-bit little-endian integer.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a 32-bit little-endian integer.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a 64-bit little-endian integer.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a 64-bit little-endian two's complement integer.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a LEB128 integer in its shortest form.
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.bytes.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
        self
    }

    /// Appends a byte string preceded by its length.
    pub fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64);
        self.bytes(bytes)
    }

    /// Appends text preceded by its length in bytes.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.blob(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_know_their_offset() {
        let mut r = Reader::new(&[1, 2, 3]);
        r.u8("a").unwrap();
        assert_eq!(r.u32("b"), Err(FormatError::Truncated { offset: 1, need: 2, what: "b" }));
    }

    #[test]
    fn overlong_and_oversized_varints_are_refused() {
        assert!(Reader::new(&[0x80, 0x00]).varint("v").is_err());
        assert!(Reader::new(&[0xff; 10]).varint("v").is_err());
        assert!(Reader::new(&[0xff; 11]).varint("v").is_err());
    }

    #[test]
    fn a_damaged_count_reserves_nothing() {
        let mut w = Writer::new();
        w.varint(u64::MAX);
        assert!(Reader::new(w.as_bytes()).count(1, "n").is_err());
    }

    proptest! {
        #[test]
        fn varints_round_trip(v in any::<u64>()) {
            let mut w = Writer::new();
            w.varint(v);
            let mut r = Reader::new(w.as_bytes());
            prop_assert_eq!(r.varint("v").unwrap(), v);
            prop_assert!(r.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut r = Reader::new(&bytes);
            let _ = (r.varint("a"), r.blob("b").map(<[u8]>::len), r.text("c").map(str::len), r.u64("d"));
        }
    }
}
