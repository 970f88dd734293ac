//! One local copy of an index segment: an immutable file of ours, memory-mapped.
//!
//! ```text
//! head     magic 8 | head length u32 | object, its size, superseded names, packs, counts, filter descriptor
//! entries  50 bytes each, as in the payload
//! filter   binary fuse fingerprints over the first 8 bytes of every id, 8 bits each
//! trailer  MAC of each block of 1 310 entries | MAC of the filter | MAC of the head, 32 bytes each
//! ```
//! Every MAC is BLAKE3 under a key derived from the caller's key, the object's name and its size, over the
//! region's kind and number and its bytes. So a file that was cut, flipped, assembled from others, renamed, or
//! written for another repository fails the first MAC it is asked about, and a lookup reads nothing that was
//! not checked. The head is checked when the file is opened, the filter and each block when they are first
//! touched; an atomic bit remembers it.
//!
//! What this does not defend against is one who changes the file *between* the check and the read: that
//! needs the user's own rights while the process runs. A file that another process truncates while it is
//! mapped ends this process with SIGBUS; nothing here ever truncates: files are written under a temporary name,
//! renamed, and only ever unlinked or renamed afterwards.

use crate::index::error::{IndexError, io};
use crate::index::{ChunkAt, PackFacts};
use memmap2::Mmap;
use pgkeep_formats::FormatError;
use pgkeep_formats::codec::{Reader, Writer};
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::index::{ENTRY_LEN, IndexEntry, IndexView, search};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};
use zeroize::Zeroizing;

/// The first bytes; the last of them is the version. Any other file is fetched again, so none is ever converted.
const MAGIC: [u8; 8] = *b"pgkidx\0\x01";
/// Magic and head length.
const PREFIX_LEN: usize = MAGIC.len() + 4;
/// Bytes of one MAC.
const MAC_LEN: usize = 32;
/// Entries under one MAC: the most whole ones in 64 KiB, so that no entry lies in two blocks.
const BLOCK_ENTRIES: usize = (64 << 10) / ENTRY_LEN;
/// Distinguishes the three kinds of regions under one key.
const REGION_HEAD: u8 = 1;
const REGION_FILTER: u8 = 2;
const REGION_BLOCK: u8 = 3;

/// What did not match in a cached file; the file is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage(pub(super) &'static str);

/// Why a file cannot be opened.
#[derive(Debug)]
pub(super) enum OpenFailure {
    /// There is no such file.
    Absent,
    /// There is one, and it must not be used.
    Damaged(Damage),
    /// The system refuses.
    Io(IndexError),
}

/// An open segment. Any thread may look up.
pub(super) struct Segment {
    map: Mmap,
    key: Zeroizing<[u8; 32]>,
    supersedes: Vec<String>,
    packs: Vec<Arc<PackFacts>>,
    entries: Range<usize>,
    count: usize,
    /// Empty when the segment has no filter: then every id may be there.
    descriptor: Vec<u8>,
    filter: Range<usize>,
    filter_checked: AtomicBool,
    blocks_checked: Vec<AtomicU64>,
}

/// The key of all MACs of one file: bound to the object it copies.
fn file_key(key: &[u8; 32], object: &str, size: u64) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"pgkeep cached index segment").update(&size.to_le_bytes()).update(object.as_bytes());
    Zeroizing::new(*hasher.finalize().as_bytes())
}

fn mac(key: &[u8; 32], region: u8, number: u64, bytes: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[region]).update(&number.to_le_bytes()).update(bytes);
    hasher.finalize()
}

fn filter_key(id: &[u8]) -> u64 {
    id.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Builds the filter: its descriptor and fingerprints, both empty if there can be none.
fn build_filter(entries: &[[u8; ENTRY_LEN]]) -> (Vec<u8>, Box<[u8]>) {
    let mut keys: Vec<u64> = entries.iter().map(|entry| filter_key(entry)).collect();
    keys.dedup();
    match BinaryFuse8::try_from(&keys) {
        Ok(filter) if !keys.is_empty() => {
            let mut descriptor = vec![0; BinaryFuse8::DESCRIPTOR_LEN];
            filter.dma_copy_descriptor_to(&mut descriptor);
            (descriptor, filter.fingerprints)
        }
        // Building fails only by extreme bad luck; a segment without filter is slower and just as right.
        _ => (Vec::new(), Box::default()),
    }
}

/// Writes the local copy of a checked payload to `path`, by way of `temporary` in the same directory.
///
/// Nothing is synced: a file that a crash tears is found out by its MACs and fetched again.
pub(super) fn write(
    path: &Path,
    temporary: &Path,
    key: &[u8; 32],
    object: &str,
    size: u64,
    view: &IndexView<'_>,
) -> Result<(), IndexError> {
    let key = file_key(key, object, size);
    let entries = view.raw_entries();
    let (descriptor, fingerprints) = build_filter(entries);
    let head = encode_head(object, size, view, &descriptor, fingerprints.len())?;
    let written = File::create(temporary).map_err(io("create", temporary)).and_then(|file| {
        let mut out = BufWriter::with_capacity(256 << 10, file);
        let mut macs = Vec::with_capacity(entries.len().div_ceil(BLOCK_ENTRIES) * MAC_LEN);
        for (number, block) in (0u64..).zip(entries.chunks(BLOCK_ENTRIES)) {
            macs.extend_from_slice(mac(&key, REGION_BLOCK, number, block.as_flattened()).as_bytes());
        }
        out.write_all(&head)
            .and_then(|()| out.write_all(entries.as_flattened()))
            .and_then(|()| out.write_all(&fingerprints))
            .and_then(|()| out.write_all(&macs))
            .and_then(|()| out.write_all(mac(&key, REGION_FILTER, 0, &fingerprints).as_bytes()))
            .and_then(|()| out.write_all(mac(&key, REGION_HEAD, 0, &head).as_bytes()))
            .and_then(|()| out.flush())
            .map_err(io("write", temporary))
    });
    let published = written.and_then(|()| fs::rename(temporary, path).map_err(io("rename", temporary)));
    if published.is_err() {
        // A leftover is swept by a later `open`.
        let _ = fs::remove_file(temporary);
    }
    published
}

fn encode_head(
    object: &str,
    size: u64,
    view: &IndexView<'_>,
    descriptor: &[u8],
    filter_len: usize,
) -> Result<Vec<u8>, IndexError> {
    let mut w = Writer::new();
    w.text(object).u64(size).varint(view.supersedes().len() as u64);
    for name in view.supersedes() {
        w.text(name);
    }
    w.varint(view.packs().len() as u64);
    for facts in view.packs() {
        facts.pack.write(&mut w);
        facts.session.write(&mut w);
        w.u32(facts.epoch).u8(facts.domain).bytes(&facts.scope).u64(facts.size);
    }
    w.u64(view.len() as u64).blob(descriptor).u64(filter_len as u64);
    let body = w.into_bytes();
    let found = (PREFIX_LEN + body.len()) as u64;
    let len = u32::try_from(found).map_err(|_| IndexError::Place {
        source: FormatError::OutOfRange { offset: 0, what: "length of the packs table", found },
    })?;
    let mut head = Vec::with_capacity(PREFIX_LEN + body.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&len.to_le_bytes());
    head.extend_from_slice(&body);
    Ok(head)
}

/// The head after its MAC was found good.
struct Head {
    object: String,
    size: u64,
    supersedes: Vec<String>,
    packs: Vec<Arc<PackFacts>>,
    count: u64,
    descriptor: Vec<u8>,
    filter_len: u64,
}

fn decode_head(body: &[u8]) -> Result<Head, FormatError> {
    let mut r = Reader::new(body);
    let object = r.text("object")?.to_owned();
    let size = r.u64("size")?;
    let supersedes = (0..r.count(1, "superseded")?).map(|_| r.text("superseded").map(str::to_owned));
    let supersedes = supersedes.collect::<Result<_, _>>()?;
    let mut packs = Vec::new();
    for _ in 0..r.count(PackId::LEN, "packs")? {
        packs.push(Arc::new(PackFacts {
            pack: PackId::read(&mut r)?,
            session: SessionId::read(&mut r)?,
            epoch: r.u32("epoch")?,
            domain: r.u8("domain")?,
            scope: r.array("scope")?,
            size: r.u64("size")?,
        }));
    }
    let count = r.u64("entries")?;
    let descriptor = r.blob("filter descriptor")?.to_vec();
    let filter_len = r.u64("filter length")?;
    r.finish("segment head")?;
    Ok(Head { object, size, supersedes, packs, count, descriptor, filter_len })
}

impl Segment {
    /// Opens the copy of `object`, of which the repository says that it has `size` bytes.
    pub(super) fn open(path: &Path, key: &[u8; 32], object: &str, size: u64) -> Result<Self, OpenFailure> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(OpenFailure::Absent),
            Err(e) => return Err(OpenFailure::Io(io("open", path)(e))),
        };
        let facts = file.metadata().map_err(io("stat", path)).map_err(OpenFailure::Io)?;
        if !facts.is_file() || facts.len() < (PREFIX_LEN + 2 * MAC_LEN) as u64 {
            return Err(OpenFailure::Damaged(Damage("it is too short")));
        }
        // SAFETY: the file is ours and immutable: it was renamed into place complete, and no code of ours
        // writes to or truncates a file of that name. Its bytes are only ever viewed as u8, which has no
        // invalid values, and are authenticated before they decide anything.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map", path)).map_err(OpenFailure::Io)?;
        Self::from_map(map, key, object, size).map_err(OpenFailure::Damaged)
    }

    fn from_map(map: Mmap, key: &[u8; 32], object: &str, size: u64) -> Result<Self, Damage> {
        let key = file_key(key, object, size);
        let (magic, rest) = map.split_at_checked(MAGIC.len()).ok_or(Damage("it is too short"))?;
        if magic != MAGIC {
            return Err(Damage("it is of another kind or version"));
        }
        let head_len = Reader::new(rest).u32("head length").map_err(|_| Damage("it is too short"))? as usize;
        let head = map.get(..head_len).filter(|head| head.len() >= PREFIX_LEN).ok_or(Damage("its head is cut"))?;
        let stored = map.last_chunk::<MAC_LEN>().ok_or(Damage("it is too short"))?;
        if mac(&key, REGION_HEAD, 0, head) != *stored {
            return Err(Damage("its head does not authenticate"));
        }
        let head = decode_head(head.get(PREFIX_LEN..).unwrap_or_default()).map_err(|_| Damage("its head is odd"))?;
        if head.object != object || head.size != size {
            return Err(Damage("it is a copy of another object"));
        }
        let layout = || {
            let count = usize::try_from(head.count).ok()?;
            let entries_end = head_len.checked_add(count.checked_mul(ENTRY_LEN)?)?;
            let filter_end = entries_end.checked_add(usize::try_from(head.filter_len).ok()?)?;
            let blocks = count.div_ceil(BLOCK_ENTRIES);
            let end = filter_end.checked_add(blocks.checked_add(2)?.checked_mul(MAC_LEN)?)?;
            (end == map.len()).then_some((count, blocks, head_len..entries_end, entries_end..filter_end))
        };
        let (count, blocks, entries, filter) = layout().ok_or(Damage("its length is wrong"))?;
        if !head.descriptor.is_empty() && head.descriptor.len() != BinaryFuse8::DESCRIPTOR_LEN {
            return Err(Damage("its filter is of another kind"));
        }
        Ok(Self {
            key,
            supersedes: head.supersedes,
            packs: head.packs,
            entries,
            count,
            descriptor: head.descriptor,
            filter,
            filter_checked: AtomicBool::new(false),
            blocks_checked: (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            map,
        })
    }

    /// Facts of the packs its entries lie in.
    pub(super) fn packs(&self) -> &[Arc<PackFacts>] {
        &self.packs
    }

    /// Names of the objects this one replaces.
    pub(super) fn supersedes(&self) -> &[String] {
        &self.supersedes
    }

    /// Number of chunks.
    pub(super) fn len(&self) -> u64 {
        self.count as u64
    }

    /// Where the chunk is, read from checked bytes only.
    pub(super) fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, Damage> {
        if !self.may_hold(id)? {
            return Ok(None);
        }
        let mut checked = usize::MAX;
        let found = search(self.count, id, |n| {
            let block = n / BLOCK_ENTRIES;
            if block != checked {
                self.check_block(block)?;
                checked = block;
            }
            self.entry(n)
        })?;
        let Some(n) = found else { return Ok(None) };
        let entry = IndexEntry::from_bytes(self.entry(n)?).map_err(|_| Damage("an entry is odd"))?;
        let pack = self.packs.get(entry.pack as usize).ok_or(Damage("an entry names no pack"))?;
        Ok(Some(ChunkAt {
            pack: Arc::clone(pack),
            offset: entry.offset,
            stored_len: entry.stored_len,
            plain_len: entry.plain_len,
            kind: entry.kind,
            encoding: entry.encoding,
            ordinal: entry.ordinal,
        }))
    }

    fn may_hold(&self, id: &ChunkId) -> Result<bool, Damage> {
        if self.descriptor.is_empty() {
            return Ok(true);
        }
        let bytes = self.map.get(self.filter.clone()).ok_or(Damage("its filter is cut"))?;
        if !self.filter_checked.load(Ordering::Acquire) {
            if mac(&self.key, REGION_FILTER, 0, bytes) != self.stored_mac(1)? {
                return Err(Damage("its filter does not authenticate"));
            }
            self.filter_checked.store(true, Ordering::Release);
        }
        Ok(BinaryFuse8Ref::from_dma(&self.descriptor, bytes).contains(&filter_key(&id.0)))
    }

    fn entry(&self, n: usize) -> Result<&[u8; ENTRY_LEN], Damage> {
        let start = self.entries.start + n * ENTRY_LEN;
        let bytes = self.map.get(start..start + ENTRY_LEN).filter(|_| n < self.count);
        bytes.and_then(|bytes| bytes.first_chunk()).ok_or(Damage("its entries are cut"))
    }

    /// Authenticates a block unless that was done before.
    fn check_block(&self, block: usize) -> Result<(), Damage> {
        let bit = 1u64 << (block % 64);
        let word = self.blocks_checked.get(block / 64).ok_or(Damage("its entries are cut"))?;
        if word.load(Ordering::Acquire) & bit != 0 {
            return Ok(());
        }
        let first = block * BLOCK_ENTRIES;
        let last = (first + BLOCK_ENTRIES).min(self.count);
        let region = self.entries.start + first * ENTRY_LEN..self.entries.start + last * ENTRY_LEN;
        let bytes = self.map.get(region).ok_or(Damage("its entries are cut"))?;
        let behind = self.count.div_ceil(BLOCK_ENTRIES) - block;
        if mac(&self.key, REGION_BLOCK, block as u64, bytes) != self.stored_mac(behind + 1)? {
            return Err(Damage("its entries do not authenticate"));
        }
        word.fetch_or(bit, Ordering::Release);
        Ok(())
    }

    /// The MAC that has `behind` others behind it.
    fn stored_mac(&self, behind: usize) -> Result<[u8; MAC_LEN], Damage> {
        let end = self.map.len().checked_sub(behind * MAC_LEN);
        let bytes = end.and_then(|end| self.map.get(..end)).and_then(|bytes| bytes.last_chunk());
        bytes.copied().ok_or(Damage("its trailer is cut"))
    }
}

/// The file of an object's copy: object names have slashes, and may be longer than a file name.
pub(in crate::index) fn path_of(dir: &Path, object: &str) -> PathBuf {
    let name = blake3::hash(object.as_bytes()).to_hex();
    dir.join(format!("{}.seg", name.get(..40).unwrap_or(&name)))
}
