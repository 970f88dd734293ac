//! What is decoded from a summary is what the server finds in it.

use std::{collections::BTreeSet, fs};

use pgkeep_formats::pg::{Lsn, SummaryName, TimelineId, WalSummary};
use support::seed::Seed;

use crate::{builder, summarizing, workload::Workload};

#[test]
fn every_summary_is_read_as_the_server_reads_it() {
    for major in summarizing() {
        let mut cluster = builder(major).init();
        cluster.start();
        let mut work = Workload::new(&cluster, Seed::new());
        for _ in 0..3 {
            work.run(&cluster, 12);
            cluster.checkpoint();
        }
        cluster
            .wait_for("SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()");
        let list = cluster.psql("SELECT tli, start_lsn, end_lsn FROM pg_available_wal_summaries()");
        assert!(list.lines().count() >= 3, "{list}");
        let mut bitmaps = 0;
        for line in list.lines() {
            let [timeline, start, end] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let name = SummaryName {
                timeline: TimelineId(timeline.parse().unwrap()),
                start: Lsn::parse(start).unwrap(),
                end: Lsn::parse(end).unwrap(),
            };
            let path = cluster.data_dir().join(format!("pg_wal/summaries/{name}"));
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
            let summary = WalSummary::parse(&bytes).unwrap();
            let mut ours = BTreeSet::new();
            for entry in summary.entries() {
                let (r, fork) = (entry.relation, entry.fork);
                let key = format!("{}|{}|{}|{fork}", r.tablespace_oid, r.database_oid, r.filenode);
                ours.extend(entry.limit.map(|limit| format!("{key}|{limit}|t")));
                let before = ours.len();
                ours.extend(entry.blocks().map(|block| format!("{key}|{block}|f")));
                bitmaps += usize::from(ours.len() - before > 4096);
            }
            let rows = cluster.psql(&format!(
                "SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
                 FROM pg_wal_summary_contents({timeline}, '{start}', '{end}')"
            ));
            let theirs: BTreeSet<String> = rows.lines().map(str::to_owned).collect();
            assert!(ours == theirs, "{name}: {:?}", ours.symmetric_difference(&theirs).take(10).collect::<Vec<_>>());
        }
        assert!(bitmaps > 0, "no relation changed enough for a bitmap");
    }
}
