//! Requests that were sent, by kind: what services bill.

use http::Method;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many requests of each kind a store has sent, those that failed and were repeated included.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    /// Objects put.
    pub puts: u64,
    /// Objects or parts of them read.
    pub gets: u64,
    /// Pages of lists.
    pub lists: u64,
    /// Objects looked at without being read.
    pub heads: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// For credentials.
    pub tokens: u64,
    /// Of all of these, those to which no answer came, or one that asked to come again.
    pub failed: u64,
    /// Bytes sent in puts.
    pub sent: u64,
    /// Bytes received of objects.
    pub received: u64,
}

impl Requests {
    /// All requests, without those for credentials.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.puts + self.gets + self.lists + self.heads + self.deletes
    }
}

impl std::ops::AddAssign for Requests {
    fn add_assign(&mut self, other: Self) {
        self.puts += other.puts;
        self.gets += other.gets;
        self.lists += other.lists;
        self.heads += other.heads;
        self.deletes += other.deletes;
        self.tokens += other.tokens;
        self.failed += other.failed;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Put,
    Get,
    List,
    Head,
    Delete,
    Token,
}

impl Purpose {
    /// Of a request to the store itself. Lists are gets of a query; of deletes in bulk only Azure knows no other form.
    pub(super) fn of(method: &Method, query: &str) -> Self {
        let lists = ["list-type=", "comp=list", "prefix="].iter().any(|part| query.contains(part));
        match *method {
            Method::PUT => Self::Put,
            Method::HEAD => Self::Head,
            Method::DELETE | Method::POST => Self::Delete,
            _ if lists => Self::List,
            _ => Self::Get,
        }
    }
}

/// The running count.
#[derive(Debug, Default)]
pub(super) struct Counters {
    by_purpose: [AtomicU64; 6],
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    pub(super) fn request(&self, purpose: Purpose) {
        // Every purpose has its place: six of each.
        if let Some(count) = self.by_purpose.get(purpose as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn read(&self) -> Requests {
        let [puts, gets, lists, heads, deletes, tokens] =
            [0, 1, 2, 3, 4, 5].map(|n| self.by_purpose.get(n).map_or(0, |count| count.load(Relaxed)));
        let (failed, sent, received) =
            (self.failed.load(Relaxed), self.sent.load(Relaxed), self.received.load(Relaxed));
        Requests { puts, gets, lists, heads, deletes, tokens, failed, sent, received }
    }
}
