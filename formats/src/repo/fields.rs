//! Tagged fields: the layout of records that will grow (commit, session, stanza history, generation ...).
//!
//! A record is a version byte and then fields in rising tag order, each `varint tag ‖ varint length ‖ bytes`.
//! A reader skips even tags it does not know and refuses odd ones: a writer picks an odd tag for what must not be
//! overlooked. Layout: FORMAT.md, "Tagged fields".

use crate::FormatError;
use crate::codec::{Reader, Writer};
use std::collections::BTreeMap;

/// Writes tagged fields in rising order.
#[derive(Debug)]
pub struct FieldsWriter {
    out: Writer,
    last: u64,
}

impl FieldsWriter {
    /// Starts a record of the given version.
    #[must_use]
    pub fn new(version: u8) -> Self {
        let mut out = Writer::new();
        out.u8(version);
        Self { out, last: 0 }
    }

    /// Appends a field whose bytes `fill` writes. Tags must rise: that is our own invariant.
    pub fn field(&mut self, tag: u64, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        assert!(tag > self.last, "tags rise");
        self.last = tag;
        let mut body = Writer::new();
        fill(&mut body);
        self.out.varint(tag).blob(body.as_bytes());
        self
    }

    /// Appends an integer field.
    pub fn int(&mut self, tag: u64, value: u64) -> &mut Self {
        self.field(tag, |w| {
            w.varint(value);
        })
    }

    /// Appends a text field.
    pub fn text(&mut self, tag: u64, value: &str) -> &mut Self {
        self.field(tag, |w| {
            w.bytes(value.as_bytes());
        })
    }

    /// Appends a field only if there is a value.
    pub fn maybe<T>(&mut self, tag: u64, value: Option<T>, fill: impl FnOnce(&mut Writer, T)) -> &mut Self {
        if let Some(value) = value {
            self.field(tag, |w| fill(w, value));
        }
        self
    }

    /// The record's bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out.into_bytes()
    }
}

/// The fields of one record, by tag.
#[derive(Debug)]
pub struct Fields<'a> {
    what: &'static str,
    by_tag: BTreeMap<u64, &'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Splits a record into its fields and checks that every odd tag is in `known`.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] for another version or an unknown odd tag, and what the codec says.
    pub fn parse(bytes: &'a [u8], version: u8, known: &[u64], what: &'static str) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let found = r.u8(what)?;
        if found != version {
            return Err(FormatError::BadVersion { what, found: u64::from(found), supported: "1" });
        }
        let mut by_tag = BTreeMap::new();
        let mut last = 0;
        while !r.is_empty() {
            let offset = r.offset();
            let tag = r.varint(what)?;
            if tag <= last {
                return Err(FormatError::OutOfRange { offset, what, found: tag });
            }
            last = tag;
            let body = r.blob(what)?;
            if tag % 2 == 1 && !known.contains(&tag) {
                return Err(FormatError::BadVersion { what, found: tag, supported: "fields known to this program" });
            }
            by_tag.insert(tag, body);
        }
        Ok(Self { what, by_tag })
    }

    /// A reader over a field that must be there.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if it is missing.
    pub fn need(&self, tag: u64) -> Result<Reader<'a>, FormatError> {
        self.get(tag).ok_or(FormatError::Truncated { offset: 0, need: 1, what: self.what })
    }

    /// A reader over a field, if it is there.
    #[must_use]
    pub fn get(&self, tag: u64) -> Option<Reader<'a>> {
        self.by_tag.get(&tag).map(|b| Reader::new(b))
    }

    /// An integer field that must be there.
    ///
    /// # Errors
    /// As [`Self::need`] and the codec.
    pub fn int(&self, tag: u64) -> Result<u64, FormatError> {
        let mut r = self.need(tag)?;
        let value = r.varint(self.what)?;
        r.finish(self.what)?;
        Ok(value)
    }

    /// An integer field, or `default`.
    ///
    /// # Errors
    /// What the codec says.
    pub fn int_or(&self, tag: u64, default: u64) -> Result<u64, FormatError> {
        if self.by_tag.contains_key(&tag) { self.int(tag) } else { Ok(default) }
    }

    /// A text field that must be there.
    ///
    /// # Errors
    /// As [`Self::need`]; [`FormatError::BadText`] if it is not UTF-8.
    pub fn text(&self, tag: u64) -> Result<String, FormatError> {
        let mut r = self.need(tag)?;
        let bytes = r.bytes(r.remaining(), self.what)?;
        String::from_utf8(bytes.to_vec()).map_err(|e| FormatError::BadText { what: self.what, detail: e.to_string() })
    }

    /// A text field, if it is there.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if it is not UTF-8.
    pub fn text_maybe(&self, tag: u64) -> Result<Option<String>, FormatError> {
        if self.by_tag.contains_key(&tag) { self.text(tag).map(Some) } else { Ok(None) }
    }

    /// A list field: a count, then items of at least `min_bytes` each; a missing field is an empty list.
    ///
    /// # Errors
    /// What the codec or `item` says.
    pub fn list<T>(
        &self,
        tag: u64,
        min_bytes: usize,
        mut item: impl FnMut(&mut Reader<'a>) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let Some(mut r) = self.get(tag) else { return Ok(Vec::new()) };
        let count = r.count(min_bytes, self.what)?;
        let out = (0..count).map(|_| item(&mut r)).collect::<Result<Vec<_>, _>>()?;
        r.finish(self.what)?;
        Ok(out)
    }
}

/// Writes a list as [`Fields::list`] reads it.
pub fn write_list<T>(w: &mut Writer, items: impl ExactSizeIterator<Item = T>, mut item: impl FnMut(&mut Writer, T)) {
    w.varint(items.len() as u64);
    for i in items {
        item(w, i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_even_tags_are_skipped_and_odd_ones_refused() {
        let mut w = FieldsWriter::new(1);
        w.int(1, 7).int(4, 9);
        let bytes = w.finish();
        assert_eq!(Fields::parse(&bytes, 1, &[1], "x").unwrap().int(1), Ok(7));
        assert!(matches!(Fields::parse(&bytes, 1, &[], "x"), Err(FormatError::BadVersion { found: 1, .. })));
        assert!(Fields::parse(&bytes, 2, &[1], "x").is_err());
    }

    #[test]
    fn tags_out_of_order_are_refused() {
        assert!(Fields::parse(&[1, 4, 0, 2, 0], 1, &[], "x").is_err());
        assert!(Fields::parse(&[1, 4, 0, 4, 0], 1, &[], "x").is_err());
    }
}
