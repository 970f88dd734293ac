//! Lists, page by page.
//!
//! Services give a thousand entries a page. A page that fails is asked for again from behind the last entry, so that a long
//! list does not depend on all of its pages succeeding at the first try; a failure before the first entry, or several
//! without any progress, is left to [`RetryStore`](crate::store::RetryStore).

use super::fault::Failure;
use super::{BucketStore, Operation};
use crate::store::{Depth, Listed, ServiceFault};
use futures_util::StreamExt;
use object_store::{ObjectMeta, path::Path};
use std::time::Duration;

/// Failures in a row, with no entry between them, after which a list has failed.
const STUCK_MAX: u32 = 3;

/// The wait before the second page is asked for again; each later one is longer by as much.
const WAIT: Duration = Duration::from_millis(200);

impl BucketStore {
    /// Reports the objects below a prefix, in order.
    pub(super) async fn list_all(&self, prefix: Option<&Path>, each: &mut dyn FnMut(Listed)) -> Result<(), Failure> {
        let (mut last, mut stuck) = (None::<String>, 0);
        loop {
            let before = last.clone();
            let failure = match self.pages(prefix, &mut last, each).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            stuck = if last == before { stuck + 1 } else { 1 };
            if last.is_none() || stuck >= STUCK_MAX || failure.fault.is_permanent() {
                return Err(failure);
            }
            tracing::debug!(after = last.as_deref(), failure = %failure.said, "going on with a list");
            tokio::time::sleep(WAIT * stuck).await;
        }
    }

    async fn pages(
        &self,
        prefix: Option<&Path>,
        last: &mut Option<String>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), Failure> {
        let mut entries = match last {
            Some(last) => {
                let offset = self.path(last).map_err(|e| Failure::of(ServiceFault::Answer, e.to_string()))?;
                self.inner.list_with_offset(prefix, &offset)
            }
            None => self.inner.list(prefix),
        };
        let (seen, mut before) = (last.clone(), None::<String>);
        while let Some(entry) = self.answer(entries.next()).await? {
            let Some(listed) = self.listed(&entry.map_err(|e| self.failure(&e))?) else { continue };
            if before.as_ref().is_some_and(|before| listed.key <= *before) {
                // Everything that goes on behind an entry rests on the order.
                let text = format!("'{}' is listed behind '{}'", listed.key, before.unwrap_or_default());
                return Err(Failure::of(ServiceFault::Answer, text));
            }
            before = Some(listed.key.clone());
            // A service need not know how to begin in the middle.
            if seen.as_ref().is_some_and(|seen| listed.key <= *seen) {
                continue;
            }
            *last = Some(listed.key.clone());
            each(listed);
        }
        Ok(())
    }

    /// Reports the direct children of a prefix, in order. All are held in memory.
    pub(super) async fn list_children(
        &self,
        prefix: Option<&Path>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), Failure> {
        let found = self.answer_within(self.timeout * 10, self.inner.list_with_delimiter(prefix)).await?;
        let found = found.map_err(|e| self.failure(&e))?;
        let mut all: Vec<Listed> = found.objects.iter().filter_map(|meta| self.listed(meta)).collect();
        let prefixes = found.common_prefixes.iter().filter_map(|path| self.key(path));
        all.extend(prefixes.map(|key| Listed { key: format!("{key}/"), size: 0, modified: 0 }));
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        all.into_iter().for_each(each);
        Ok(())
    }

    fn listed(&self, meta: &ObjectMeta) -> Option<Listed> {
        let key = self.key(&meta.location)?;
        Some(Listed { key, size: meta.size, modified: meta.last_modified.timestamp() })
    }

    pub(super) fn list_at(
        &self,
        prefix: &str,
        depth: Depth,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), crate::store::StoreError> {
        let below = format!("{}{prefix}", self.prefix);
        let path = (!below.is_empty()).then(|| self.path(prefix.trim_end_matches('/'))).transpose()?;
        let done = self.run(Operation { verb: "list", key: prefix }, async {
            match depth {
                Depth::All => self.list_all(path.as_ref(), each).await,
                Depth::Children => self.list_children(path.as_ref(), each).await,
            }
        });
        done.map_err(|mut failure| {
            // Nothing below a prefix is an empty list; this is of what stands between us and the service.
            if failure.status == Some(404) && failure.fault == ServiceFault::Refused {
                failure.fault = ServiceFault::Failed;
            }
            self.error(Operation { verb: "list", key: prefix }, failure)
        })
    }
}
