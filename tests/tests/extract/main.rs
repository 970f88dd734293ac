//! Tables taken out of a backup: what comes back is what was there then, and of the clone that served for it nothing is
//! left, however the command ends.

use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use support::{Cluster, World, account, sandbox::Run, spread};

mod endings;
mod places;

use places::Shop;

#[test]
fn a_table_comes_back_as_it_was_at_a_time() {
    for major in spread() {
        let shop = Shop::new(major);
        let run = shop.expect(0, &["--table=public.orders"]);
        // Standard output holds the dump alone, whatever is said on the side.
        assert!(run.stdout.starts_with("--\n-- PostgreSQL database dump"), "{run}");
        assert!(!run.stdout.contains(" INFO: ") && run.stderr.contains("dumping from database 'postgres'"), "{run}");
        assert!(!run.stdout.contains("items"), "{run}");
        let copy = shop.loaded("plain", &run.stdout);
        assert_eq!(copy("SELECT count(*), sum(id) FROM orders"), shop.then.orders);
        assert_eq!(shop.world.cluster.psql("SELECT count(*) FROM orders"), "1");
        shop.assert_clean();

        // Several tables; the end of the archive.
        let run = shop.expect_at(0, &["--table=public.orders", "--table=i*s", "--set=latest"], &[]);
        let copy = shop.loaded("several", &run.stdout);
        assert_eq!(copy("SELECT count(*), min(note) FROM orders"), "1|all gone");
        assert_eq!(copy("SELECT count(*) FROM items"), "300");
        shop.assert_clean();
    }
}

#[test]
fn a_schema_comes_back_in_any_format() {
    let shop = Shop::new(15);
    let schema = "SELECT count(*), sum(amount) FROM sales.bills";
    let dir = shop.world.sandbox.dir("dumps");
    let plain = dir.join("sales.sql");
    fs::write(&plain, "of before").unwrap();
    let run = shop.expect(0, &["--schema=sales", &format!("--file={}", plain.display())]);
    assert!(run.stdout.is_empty(), "{run}");
    let copy = shop.loaded("plain", &fs::read_to_string(&plain).unwrap());
    assert_eq!(copy(schema), shop.then.bills);

    for format in ["custom", "directory"] {
        let path = dir.join(format);
        let file = format!("--file={}", path.display());
        let run = shop.expect(0, &["--schema=sales", &format!("--format={format}"), &file, "--process-max=2"]);
        assert!(run.stdout.is_empty(), "{run}");
        assert_eq!(path.is_dir(), format == "directory");
        shop.world.cluster.psql(&format!("CREATE DATABASE {format}"));
        let mut restore = account::command(shop.world.cluster.binaries().client("pg_restore"));
        let out = shop.reaches(&mut restore, format).args(["-d", format]).arg(&path).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(shop.world.cluster.psql_in(format, schema), shop.then.bills);
    }
    // Custom goes through a pipe as well.
    let run = shop.expect(0, &["--schema=sales", "--format=custom"]);
    assert!(run.stdout.starts_with("PGDMP"), "{}", run.stdout.len());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    shop.assert_clean();
}

#[test]
fn a_table_goes_straight_into_another_server() {
    for major in spread() {
        let shop = Shop::new(major);
        let mut other = Cluster::builder(major).init();
        other.start();
        let into = format!("--into={}", conninfo(&other, "postgres"));
        let run = shop.expect(0, &["--table=orders", "--table=public.items", &into, "--no-owner", "--no-privileges"]);
        assert!(run.stdout.is_empty(), "{run}");
        assert_eq!(other.psql("SELECT count(*), sum(id) FROM orders"), shop.then.orders);
        // Rows alone into what is there; what does not fit is refused as a whole.
        other.psql("TRUNCATE orders; TRUNCATE items; ALTER TABLE items ADD CHECK (id < 150)");
        let run = shop.expect(102, &["--table=orders", "--table=items", &into, "--data-only"]);
        assert!(run.says("has not taken the dump") && run.says("violates check constraint"), "{run}");
        assert_eq!(other.psql("SELECT count(*) FROM orders"), "0");
        shop.expect(0, &["--table=orders", &into, "--data-only"]);
        assert_eq!(other.psql("SELECT count(*), sum(id) FROM orders"), shop.then.orders);
        let run = shop.expect(102, &["--table=orders", "--into=host=/nowhere dbname=x"]);
        assert!(run.says("has not taken the dump") && run.says("/nowhere"), "{run}");
        shop.assert_clean();
    }
}

#[test]
fn another_server_takes_all_or_nothing_with_large_objects_too() {
    let world = World::new(15);
    world.cluster.psql("CREATE DATABASE shop");
    let sql = "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 50); \
               SELECT lo_from_bytea(0, repeat('x', 100 * i)::bytea) FROM generate_series(1, 20) AS i";
    world.cluster.psql_in("shop", sql);
    world.backup("full");
    world.archive_now();
    let shop = Shop::of(world);
    let mut other = Cluster::builder(15).init();
    other.start();
    // Keys are made after everything else, and the name of this one is taken.
    other.psql("CREATE TABLE orders_pkey (i int)");
    let into = format!("--into={}", conninfo(&other, "postgres"));
    let kept = "SELECT (SELECT count(*) FROM pg_largeobject_metadata), \
                (SELECT count(*) FROM pg_class WHERE relname = 'orders')";
    let run = shop.expect_at(102, &[&into], &[]);
    assert!(run.says("\"orders_pkey\" already exists") && run.says("kept nothing of it"), "{run}");
    assert_eq!(other.psql(kept), "0|0");
    other.psql("DROP TABLE orders_pkey");
    shop.expect_at(0, &[&into], &[]);
    assert_eq!(other.psql(kept), "20|1");
    assert_eq!(other.psql("SELECT sum(length(lo_get(oid))) FROM pg_largeobject_metadata"), "21000");
    shop.assert_clean();
}

#[test]
fn what_is_not_there_is_named() {
    let shop = Shop::new(15);
    let file = shop.world.path("never.sql");
    let to_file = format!("--file={}", file.display());
    let run = shop.expect(1, &["--table=public.orders", "--table=public.nothing"]);
    assert!(run.says("public.nothing") && run.says("databases were 'postgres'") && run.stdout.is_empty(), "{run}");
    let run = shop.expect(1, &["--schema=nothing", &to_file]);
    assert!(run.says("\"nothing\"") && !file.exists(), "{run}");
    let run = shop.expect(80, &["--database=nothing"]);
    assert!(run.says("there was no database 'nothing' then; there were 'postgres'"), "{run}");

    // The archive does not reach it.
    let run = shop.expect_at(56, &["--table=orders", &to_file], &["--type=time", "--target=2099-01-01 00:00:00+00"]);
    assert!(run.says("recovery ended before configured recovery target was reached"), "{run}");
    assert!(run.says("hint: the archive ends before the target") && !file.exists(), "{run}");
    // Nor is there any backup for it.
    let run = shop.expect_at(75, &["--table=orders"], &["--type=time", "--target=2001-01-01 00:00:00+00"]);
    assert!(run.says("no backup set ended before the target"), "{run}");

    for (args, code, says) in [
        (&["--format=directory"] as &[&str], 31, "needs option 'file'"),
        (&["--into=host=x password=y"], 32, "holds a password"),
        (&["--into=host=x", "--format=custom"], 31, "not for 'into'"),
        (&["--table=a", "--schema=b"], 31, "exclude each other"),
        (&["--dir=/nowhere"], 73, "there is no directory '/nowhere'"),
        (&["--pg-bin=/nowhere"], 102, "there is no '/nowhere/pg_ctl'"),
        (&["--pg1-user=nobody"], 89, "option pg1-user names a superuser"),
    ] {
        let run = shop.expect(code, args);
        assert!(run.says(says), "{run}");
    }
    shop.assert_clean();
}

#[test]
fn a_database_must_be_named_if_several_may_be_meant() {
    let world = World::new(15);
    world.cluster.psql("CREATE DATABASE shop");
    world.cluster.psql_in("shop", "CREATE TABLE orders AS SELECT generate_series(1, 10) AS id");
    world.backup("full");
    world.archive_now();
    let shop = Shop::of(world);
    // The only one that is its user's.
    let run = shop.expect_at(0, &["--table=orders"], &[]);
    assert!(run.stdout.contains("CREATE TABLE public.orders"), "{run}");
    shop.world.cluster.psql("CREATE DATABASE \"two = 2\"");
    shop.world.cluster.psql_in("two = 2", "CREATE TABLE here (id int)");
    shop.world.archive_now();
    let run = shop.expect_at(37, &["--table=orders"], &[]);
    assert!(run.says("'postgres', 'shop', 'two = 2'") && run.says("needs option 'database'"), "{run}");
    let run = shop.expect_at(0, &["--table=here", "--database=two = 2"], &[]);
    assert!(run.stdout.contains("CREATE TABLE public.here"), "{run}");
    shop.assert_clean();
}

/// How to reach a server's database.
fn conninfo(cluster: &Cluster, database: &str) -> String {
    format!("host={} port={} user=postgres dbname={database}", cluster.socket_dir().display(), cluster.port())
}

/// What runs with this path in its arguments or works in it.
fn users_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        if !entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(dir) || cwd.starts_with(dir) {
            found.push(format!("{}: {line}", entry.file_name().display()));
        }
    }
    found
}

/// Loads a dump into a new database of the cluster by psql.
fn load(cluster: &Cluster, database: &str, sql: &str) {
    cluster.psql(&format!("CREATE DATABASE \"{database}\""));
    let mut psql = account::command(cluster.binaries().client("psql"));
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &conninfo(cluster, database)]);
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), sql.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Longer than the clock's grain and than a second of a backup's end.
fn pause() {
    thread::sleep(Duration::from_millis(1100));
}

/// A run's end for messages.
fn code(run: &Run) -> i32 {
    run.code.unwrap_or_else(|| panic!("killed\n{run}"))
}

#[test]
fn root_has_the_backups_owner_run_the_server() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let shop = Shop::new(15);
    let config = format!("--config={}", shop.world.sandbox.config().display());
    let then = shop.then();
    let mut command = std::process::Command::new(shop.world.sandbox.binary());
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").arg(config).arg("--stanza=demo");
    command.args(shop.args(&["--table=orders"], &[&then[0], &then[1]]));
    let run = shop.world.sandbox.finish(command);
    assert_eq!(code(&run), 0, "{run}");
    let copy = shop.loaded("root", &run.stdout);
    assert_eq!(copy("SELECT count(*), sum(id) FROM orders"), shop.then.orders);
    shop.assert_clean();
}
