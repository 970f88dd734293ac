//! Random changes of every kind that a relation file can undergo.

use support::{Cluster, seed::Seed};

/// What there is to change.
pub(crate) struct Workload {
    seed: Seed,
    tables: Vec<String>,
    databases: Vec<String>,
    made: u32,
}

impl Workload {
    /// Makes a tablespace, a table of 5000 pages, and a few small ones.
    pub(crate) fn new(cluster: &Cluster, seed: Seed) -> Self {
        let side = cluster.side_dir("side");
        cluster.psql(&format!("CREATE TABLESPACE side LOCATION '{}'", side.display()));
        cluster.psql("CREATE SEQUENCE numbers");
        let mut work = Self { seed, tables: Vec::new(), databases: Vec::new(), made: 0 };
        cluster.psql("CREATE TABLE big (id int PRIMARY KEY, part int, filler text) WITH (fillfactor = 20)");
        cluster.psql("ALTER TABLE big ALTER filler SET STORAGE plain");
        cluster.psql("INSERT INTO big SELECT n, n, repeat('x', 1000) FROM generate_series(1, 5000) n");
        for _ in 0..3 {
            work.create_table(cluster);
        }
        cluster.psql("VACUUM");
        work
    }

    /// Does this many things, printing each.
    pub(crate) fn run(&mut self, cluster: &Cluster, count: u32) {
        for _ in 0..count {
            self.step(cluster);
        }
    }

    /// Reads everything twice, so that no later reader leaves hints.
    pub(crate) fn settle(cluster: &Cluster) {
        cluster.fingerprint();
        cluster.checkpoint();
        cluster.fingerprint();
        cluster.checkpoint();
    }

    fn create_table(&mut self, cluster: &Cluster) {
        self.made += 1;
        let name = format!("t{}", self.made);
        let unlogged = *self.seed.pick(&["", "", "UNLOGGED"]);
        let place = *self.seed.pick(&["pg_default", "side"]);
        cluster.psql(&format!(
            "CREATE {unlogged} TABLE {name} (id int, part int, filler text, list int[]) TABLESPACE {place}"
        ));
        for index in ["btree (id)", "hash (part)", "brin (id)", "gin (list)"] {
            cluster.psql(&format!("CREATE INDEX ON {name} USING {index} TABLESPACE {place}"));
        }
        self.tables.push(name);
        self.insert(cluster);
    }

    fn insert(&mut self, cluster: &Cluster) {
        let table = self.seed.pick(&self.tables).clone();
        let (rows, width) = (1 + self.seed.below(4000), self.seed.below(400));
        cluster.psql(&format!(
            "INSERT INTO {table} SELECT nextval('numbers'), n, repeat('y', {width}), ARRAY[n, n % 7]
             FROM generate_series(1, {rows}) n"
        ));
    }

    fn step(&mut self, cluster: &Cluster) {
        let table = self.seed.pick(&self.tables).clone();
        let (divisor, number) = (2 + self.seed.below(50), self.seed.below(1000));
        let sql = match self.seed.below(24) {
            0..=2 => return self.insert(cluster),
            3..=4 => format!("UPDATE {table} SET part = part + 1 WHERE id % {divisor} = 0"),
            5..=6 => format!("UPDATE big SET part = -part WHERE id BETWEEN {number} AND {}", number + divisor),
            7 => format!("UPDATE big SET part = part + 1 WHERE id % {divisor} = 0"),
            8 => format!("DELETE FROM {table} WHERE id % {divisor} = 0"),
            // Vacuum gives the end of the file back, and the next insert grows it again.
            9 => {
                cluster.psql(&format!(
                    "DELETE FROM {table} WHERE id > (SELECT percentile_disc(0.6) WITHIN GROUP (ORDER BY id) FROM {table})"
                ));
                format!("VACUUM {table}")
            }
            10 => format!("VACUUM (FREEZE) {}", self.seed.pick(&[table.as_str(), "big", "pg_class"])),
            11 => {
                format!("VACUUM FULL {}", self.seed.pick(&[table.as_str(), "pg_class", "pg_attribute", "pg_database"]))
            }
            12 => format!("REINDEX TABLE {}", self.seed.pick(&[table.as_str(), "big"])),
            13 => format!("TRUNCATE {table}"),
            14 => return self.create_table(cluster),
            15 if self.tables.len() > 2 => {
                self.tables.retain(|name| *name != table);
                format!("DROP TABLE {table}")
            }
            16 => format!("ALTER TABLE {table} SET TABLESPACE {}", self.seed.pick(&["side", "pg_default"])),
            17 => format!("ALTER TABLE {table} SET {}", self.seed.pick(&["LOGGED", "UNLOGGED"])),
            18 if self.databases.len() < 3 => {
                self.made += 1;
                let name = format!("d{}", self.made);
                let strategy = self.seed.pick(&["wal_log", "file_copy"]);
                let template = self.databases.first().map_or("template1", String::as_str);
                let sql = format!("CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}");
                self.databases.push(name);
                sql
            }
            19 if !self.databases.is_empty() => {
                let at = self.seed.below(self.databases.len() as u64) as usize;
                let name = self.databases[at].clone();
                match self.seed.below(3) {
                    0 => {
                        self.databases.remove(at);
                        format!("DROP DATABASE {name}")
                    }
                    1 => format!("ALTER DATABASE {name} SET TABLESPACE {}", self.seed.pick(&["side", "pg_default"])),
                    _ => {
                        self.made += 1;
                        let sql = format!("CREATE TABLE t{} AS SELECT n FROM generate_series(1, 5000) n", self.made);
                        cluster.psql_in(&name, &sql);
                        return;
                    }
                }
            }
            20 => "SELECT lo_from_bytea(0, decode(repeat('ab', 20000), 'hex'))".to_owned(),
            21 => format!("CREATE INDEX ON {table} (part)"),
            22 => "ANALYZE".to_owned(),
            _ => "CHECKPOINT".to_owned(),
        };
        println!("  {sql}");
        cluster.psql(&sql);
    }
}
