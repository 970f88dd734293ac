//! Running a query with somebody beside it who can stop it.
//!
//! The client library blocks until the server answers. A thread per query waits for its end, and when the
//! caller cancels or the limit passes it asks the server, over a connection of its own, to cancel the query.

use super::{Connection, POLL_INTERVAL, ServerError};
use crate::observe::Cancel;
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often a running query looks whether it shall stop.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

impl Connection {
    /// Runs one piece of work on the session, with a watcher beside it.
    pub(super) fn run<T>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
    ) -> Result<T, ServerError> {
        if self.cancel.is_cancelled() {
            return Err(ServerError::Interrupted);
        }
        if self.lost {
            return Err(ServerError::Lost { doing, in_backup: self.in_backup, source: None });
        }
        let (token, limit) = (self.client.cancel_token(), self.limit);
        let (tls, cancel, client) = (&self.tls, &self.cancel, &mut self.client);
        let stop = || match tls {
            Some(tls) => token.cancel_query(tls.clone()),
            None => token.cancel_query(NoTls),
        };
        let (result, ended) = std::thread::scope(|scope| {
            let (done, waiting): (Sender<()>, Receiver<()>) = channel();
            let watcher = std::thread::Builder::new()
                .name("pgkeep-watch".to_owned())
                .spawn_scoped(scope, move || watch(&waiting, cancel, limit, stop));
            let watcher = match watcher {
                Ok(watcher) => Some(watcher),
                Err(e) => {
                    tracing::warn!("cannot start a thread to watch a query, it cannot be interrupted: {e}");
                    None
                }
            };
            let result = work(client);
            drop(done);
            (result, watcher.and_then(|w| w.join().ok()).flatten())
        });
        result.map_err(|source| match ended {
            // The watcher's request and the server's answer may cross: whoever asked to stop wants to stop.
            Some(Ended::Cancelled) => ServerError::Interrupted,
            Some(Ended::Late) if source.code() == Some(&SqlState::QUERY_CANCELED) => {
                ServerError::Timeout { doing, limit }
            }
            _ if self.client.is_closed() || is_end_of_session(&source) => {
                self.lost = true;
                ServerError::Lost { doing, in_backup: self.in_backup, source: Some(source) }
            }
            _ => ServerError::Query { doing, source },
        })
    }
}

/// Why a watcher cancelled a query.
enum Ended {
    Cancelled,
    Late,
}

/// Waits for the end of a query, and asks the server to cancel it when it must not go on.
fn watch(
    done: &Receiver<()>,
    cancel: &Cancel,
    limit: Duration,
    stop: impl Fn() -> Result<(), postgres::Error>,
) -> Option<Ended> {
    let started = Instant::now();
    let mut ended = None;
    let mut pause = WATCH_INTERVAL;
    while done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let late = started.elapsed() >= limit;
        if cancel.is_cancelled() || late {
            ended = Some(if cancel.is_cancelled() { Ended::Cancelled } else { Ended::Late });
            if let Err(e) = stop() {
                tracing::debug!("cannot ask the server to cancel a query: {e}");
            }
            // The request can arrive before the query does; it is repeated, without hurry.
            pause = POLL_INTERVAL * 10;
        }
    }
    ended
}

/// True for errors after which there is no session: the administrator's, a crash's, the network's.
fn is_end_of_session(error: &postgres::Error) -> bool {
    const ENDS: [SqlState; 4] = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    let source = std::error::Error::source(error);
    error.is_closed()
        || error.code().is_some_and(|code| ENDS.contains(code))
        || source.is_some_and(|s| s.is::<std::io::Error>())
}
