-- After a server that ended without a checkpoint.
SELECT gid FROM pg_prepared_xacts ORDER BY gid;
SET lock_timeout = '100ms';
DELETE FROM heavy WHERE k = 1;
RESET lock_timeout;
COMMIT PREPARED 'one';
ROLLBACK PREPARED 'two';
COMMIT PREPARED 'three';
SELECT count(*) FROM people WHERE name = 'prepared';
SELECT count(*) FROM people WHERE name = 'gone';
SELECT count(*), count(*) FILTER (WHERE k = 1), count(*) FILTER (WHERE t = 'three') FROM heavy;
SELECT count(*) FROM unlogged_before;
SELECT count(*) FROM unlogged_after;
INSERT INTO unlogged_after SELECT generate_series(1, 10);
SELECT count(*) FROM unlogged_after;
SELECT pages('people'), pages('heavy'), pages('parts_a'), pages('spaced');
SELECT datname FROM pg_database ORDER BY 1;
DROP DATABASE renamed;
ALTER DATABASE logged SET TABLESPACE pg_default;
DROP TABLE spaced;
ALTER INDEX ALL IN TABLESPACE own SET TABLESPACE pg_default;
DROP TABLESPACE own;
SELECT spcname FROM pg_tablespace ORDER BY 1;
VACUUM (FREEZE);
SELECT c.relname, bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relnamespace = 'public'::regnamespace AND c.relpersistence = 'p' AND c.relkind = 'i' ORDER BY 1;
SELECT md5(string_agg(p::text, '' ORDER BY id)) FROM people p;
SELECT md5(string_agg(h::text, '' ORDER BY i, t)) FROM heavy h;
SELECT md5(string_agg(h::text, '' ORDER BY id, at, v)) FROM parts h;
