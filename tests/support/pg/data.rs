//! Is the data right: fingerprints of every table, and the server's own structural check.

use std::collections::BTreeMap;

use postgres::{Client, IsolationLevel};

use super::Cluster;
use crate::account;

/// What each permanent table holds: `database.schema.table` to row count and a hash that ignores row order.
pub type Fingerprint = BTreeMap<String, String>;

impl Cluster {
    /// The databases one can connect to, templates included.
    pub fn databases(&self) -> Vec<String> {
        let names = self.psql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1");
        names.lines().map(str::to_owned).collect()
    }

    /// Fingerprints of every table of every database, each database in one snapshot.
    ///
    /// PostgreSQL has no snapshot over several databases: under load, compare one database only.
    pub fn fingerprint(&self) -> Fingerprint {
        let databases = self.databases();
        databases.iter().flat_map(|database| self.fingerprint_of(database)).collect()
    }

    /// As [`Self::fingerprint`], of one database, together in one repeatable-read snapshot.
    pub fn fingerprint_of(&self, database: &str) -> Fingerprint {
        fingerprint(&mut self.connect_to(database), database)
    }

    /// Checks every heap and index with amcheck, all index entries against their heaps.
    ///
    /// Creates the extension where it is missing, so the server must take writes.
    ///
    /// # Panics
    /// When something is found; with what.
    pub fn amcheck(&self) {
        if self.binaries().has("pg_amcheck") {
            let mut command = account::command(self.binaries().own("pg_amcheck"));
            command.arg("-h").arg(self.socket_dir()).arg("-p").arg(self.port().to_string()).args(["-U", "postgres"]);
            command.args(["--all", "--install-missing", "--heapallindexed"]);
            let out = command.output().expect("cannot run pg_amcheck");
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success() && out.stdout.is_empty(), "{self:?}: pg_amcheck: {}\n{text}", out.status);
            return;
        }
        // 13 has the extension, for B-trees only, but not the program.
        for database in self.databases() {
            self.psql_in(&database, "CREATE EXTENSION IF NOT EXISTS amcheck");
            self.psql_in(
                &database,
                "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                 JOIN pg_am a ON a.oid = c.relam \
                 WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid",
            );
        }
    }
}

/// Permanent tables and materialized views with data; what crash recovery empties (unlogged) is left out.
const TABLES: &str = "SELECT n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated \
       AND (n.nspname NOT IN ('pg_catalog', 'information_schema') OR c.relname = 'pg_largeobject') \
       AND n.nspname NOT LIKE 'pg\\_toast%' \
     ORDER BY 1";

fn fingerprint(client: &mut Client, database: &str) -> Fingerprint {
    let mut snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .expect("cannot begin a transaction");
    let tables = snapshot.query(TABLES, &[]).expect("cannot list tables");
    let mut prints = Fingerprint::new();
    for table in &tables {
        let (name, quoted): (String, String) = (table.get(0), table.get(1));
        // A sum does not depend on the order of rows, and unlike xor it sees a row that is there twice.
        let sql = format!(
            "SELECT count(*) || ':' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {quoted} t"
        );
        let row = snapshot.query_one(&sql, &[]).unwrap_or_else(|error| panic!("{database}.{name}: {error:?}"));
        prints.insert(format!("{database}.{name}"), row.get(0));
    }
    prints
}
