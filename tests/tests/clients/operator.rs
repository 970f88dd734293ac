//! PGO, the operator of Crunchy Data for Kubernetes: its command lines, its configuration in `conf.d` alone, the query of its
//! metrics, and the log files it reads.

use std::{fs, path::Path};

use super::{link, prefix, shell, shell_expect};
use support::{Cluster, Mode, Run, Sandbox, account, majors};

const STANZA: &str = "db";

/// A pod: a cluster that archives by PGO's command, and its configuration in `conf.d`.
struct Pod {
    cluster: Cluster,
    sandbox: Sandbox,
    variables: Vec<(&'static str, String)>,
}

impl Pod {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let etc = sandbox.dir("etc");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", link(&sandbox).display());
        let variables = vec![("PATH", path), ("PGBACKREST_CONFIG_PATH", etc.display().to_string())];
        let push = format!("{}pgbackrest --stanza={STANZA} archive-push \"%p\"", prefix(&variables));
        let mut cluster =
            Cluster::builder(majors()[0]).setting("archive_mode", "on").setting("archive_command", &push).init();
        write_config(&sandbox, &cluster, &etc);
        cluster.start();
        Self { cluster, sandbox, variables }
    }

    fn expect(&self, code: i32, line: &str) -> Run {
        shell_expect(code, &self.sandbox, &self.variables, line)
    }

    fn ok(&self, line: &str) -> Run {
        self.expect(0, line)
    }

    /// A server on what was restored; nothing of it goes to the archive.
    fn start(&self, data: &Path) -> Cluster {
        let mut cluster = Cluster::adopt(self.cluster.major(), data);
        cluster.override_setting("archive_mode", "off");
        // PGO's own, which does not rely on what a restore writes. There the configuration of each pod has its own directory.
        let variables = format!("{}PGBACKREST_PG1_PATH={} ", prefix(&self.variables), data.display());
        let get = format!("{variables}pgbackrest --stanza={STANZA} archive-get %f \"%p\" --repo=1");
        cluster.override_setting("restore_command", &get);
        cluster.start();
        cluster
    }
}

fn write_config(sandbox: &Sandbox, cluster: &Cluster, etc: &Path) {
    let conf_d = account::private_dir(&etc.join("conf.d"));
    let dir = |name: &str| sandbox.root().join(name).display().to_string();
    let global = format!(
        "[global]\narchive-async = y\nlog-path = {}\nlock-path = {}\nspool-path = {}\nrepo1-path = {}\n\
         repo1-retention-full = 2\nrepo1-retention-full-type = count\nlog-level-file = detail\n",
        dir("log"),
        dir("lock"),
        dir("spool"),
        dir("repo"),
    );
    let instance = format!(
        "\n[{STANZA}]\npg1-path = {}\npg1-port = {}\npg1-socket-path = {}\npg1-user = postgres\n",
        cluster.data_dir().display(),
        cluster.port(),
        cluster.socket_dir().display(),
    );
    let server = "\n[global:server]\ntls-server-address = 0.0.0.0\ntls-server-auth = pgbackrest@demo=*\n\
                  tls-server-ca-file = /etc/pgbackrest/conf.d/~postgres-operator/tls-ca.crt\n\
                  tls-server-cert-file = /etc/pgbackrest/server/server-tls.crt\n\
                  tls-server-key-file = /etc/pgbackrest/server/server-tls.key\n";
    for (name, text) in
        [("pgbackrest_instance.conf", format!("{global}{instance}")), ("server.conf", server.to_owned())]
    {
        fs::write(conf_d.join(name), text).unwrap();
        account::give(&conf_d.join(name));
    }
}

#[test]
fn an_operator_makes_backs_up_restores_and_replicates() {
    let mut pod = Pod::new();
    let create = format!("pgbackrest stanza-create --stanza={STANZA} || pgbackrest stanza-upgrade --stanza={STANZA}");
    pod.ok(&create);
    pod.ok(&create);
    pod.cluster.psql("CREATE TABLE happened AS SELECT 1 AS n");
    pod.ok(&format!("pgbackrest backup --stanza={STANZA} --repo=1 --type=full --start-fast"));
    pod.ok(&format!(
        "pgbackrest backup --stanza={STANZA} --repo=1 --type=incr --archive-copy=y --archive-check=y --start-fast"
    ));
    metrics(&pod);

    // To a time, in a new place, WAL on a volume of its own.
    pod.cluster.psql("INSERT INTO happened VALUES (2)");
    // Backups end at whole seconds, and a time to go to is behind one of them.
    let info = pod.ok("pgbackrest info --output=json").json();
    let stop = info[0]["backup"][1]["timestamp"]["stop"].as_i64().unwrap();
    pod.cluster.wait_for(&format!("SELECT clock_timestamp() > to_timestamp({stop}) + interval '1 second'"));
    let time = pod.cluster.psql("SELECT clock_timestamp()::text");
    pod.cluster.psql("INSERT INTO happened VALUES (3)");
    let archived = pod.cluster.switch_wal();
    let again =
        format!("until pgbackrest repo-ls archive/{STANZA} --recurse | grep -q /{archived}; do sleep 0.05; done");
    pod.ok(&again);
    let (data, wal) = (pod.sandbox.dir("restored"), pod.sandbox.dir("restored_wal"));
    let restore = |data: &Path, wal: &Path, how: &str| {
        format!(
            "pgbackrest restore --stanza={STANZA} --pg1-path={} --repo=1 --delta {how} --link-map=pg_wal={}",
            data.display(),
            wal.display()
        )
    };
    pod.ok(&restore(&data, &wal, &format!("--type=time --target=\"{time}\" --target-action=promote")));
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), wal);
    let mut restored = pod.start(&data);
    restored.wait_promoted();
    assert_eq!(restored.psql("SELECT n FROM happened ORDER BY 1"), "1\n2");
    restored.stop(Mode::Fast);
    // And in place of what is there.
    pod.ok(&restore(&data, &wal, "--type=immediate --target-action=promote"));
    let mut restored = pod.start(&data);
    restored.wait_promoted();
    assert_eq!(restored.psql("SELECT n FROM happened ORDER BY 1"), "1");
    drop(restored);

    // A replica, which goes on with what is archived.
    let (data, wal) = (pod.sandbox.dir("replica"), pod.sandbox.dir("replica_wal"));
    pod.ok(&format!(
        "pgbackrest restore --delta --stanza={STANZA} --repo=1 --pg1-path={} --link-map=pg_wal={} --type=standby",
        data.display(),
        wal.display()
    ));
    assert!(data.join("standby.signal").exists());
    let replica = pod.start(&data);
    pod.cluster.psql("INSERT INTO happened VALUES (4)");
    pod.cluster.switch_wal();
    replica.wait_for("SELECT count(*) = 4 FROM happened");
    assert_eq!(replica.psql("SELECT pg_is_in_recovery()"), "t");
    drop(replica);

    // What is wrong has a status that a job fails with.
    pod.expect(75, &restore(&pod.sandbox.dir("none"), &pod.sandbox.dir("none_wal"), "--set=20200101-000000F"));
    pod.expect(37, "pgbackrest backup --repo=1");
    assert!(
        shell(&pod.sandbox, &pod.variables, &format!("pgbackrest backup --stanza={STANZA} --repo=4")).code != Some(0)
    );
    logs(&pod.sandbox.logs());
    pod.cluster.stop(Mode::Fast);
    pod.expect(56, &format!("pgbackrest backup --stanza={STANZA} --repo=1"));
}

/// The queries of its dashboards, over what the server reads from the program.
fn metrics(pod: &Pod) {
    let program = format!(
        "{}pgbackrest info --log-level-console=info --log-level-stderr=warn --output=json --stanza={STANZA}",
        prefix(&pod.variables)
    );
    let copy = |program: &str| format!("COPY seen (data) FROM PROGRAM '{program}'");
    pod.cluster.psql("CREATE TABLE seen (data jsonb)");
    pod.cluster.psql(&copy(&program));
    // Again as the user guide has it, for all stanzas.
    pod.cluster.psql(&copy(&format!("{}pgbackrest --output=json info", prefix(&pod.variables))));
    let sql = "SELECT stanza->>'name', backup->'database'->>'repo-key', backup->>'type', \
                 (backup->'timestamp'->>'stop')::bigint >= (backup->'timestamp'->>'start')::bigint, \
                 split_part(backup->'backrest'->>'version', '.', 1)::int >= 0, \
                 (backup->'info'->'repository'->>'delta')::bigint > 0, (backup->>'error')::boolean \
               FROM seen, jsonb_array_elements(data) AS stanza, jsonb_array_elements(stanza->'backup') AS backup";
    let row = |of: &str| format!("db|1|{of}|t|t|t|f");
    assert_eq!(pod.cluster.psql(sql), [row("full"), row("incr"), row("full"), row("incr")].join("\n"));
    let sql = "SELECT to_timestamp((data->0->'backup'->-1->'timestamp'->>'stop')::numeric) <= clock_timestamp(), \
                 data->0->'archive'->-1->>'max' >= data->0->'backup'->-1->'archive'->>'stop' FROM seen";
    assert_eq!(pod.cluster.psql(sql), "t|t\nt|t");
}

/// Each line of a log that begins with a time has the process and the level that PGO looks for.
fn logs(dir: &Path) {
    for command in ["stanza-create", "backup", "restore"] {
        let path = dir.join(format!("{STANZA}-{command}.log"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("20")).collect();
        assert!(lines.iter().any(|line| line.contains("INFO: ")), "{text}");
        for line in lines {
            let rest = line.get(24..).and_then(|rest| rest.strip_prefix('P')).unwrap_or_else(|| panic!("{line}"));
            let (process, message) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            let is_process = matches!(process.len(), 2 | 3) && process.bytes().all(|b| b.is_ascii_digit());
            let level = message.trim_start().split(':').next().unwrap();
            assert!(is_process && ["ERROR", "WARN", "INFO", "DETAIL"].contains(&level), "{line}");
        }
    }
}
