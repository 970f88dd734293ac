-- What rewrites, shrinks, empties and moves files.
CREATE FUNCTION pages(r regclass) RETURNS text LANGUAGE sql AS $$
    SELECT format('%s pages, %s with a good header', n, (SELECT count(*) FROM generate_series(0, n - 1) AS b,
        LATERAL page_header(get_raw_page(r::text, b::int)) AS h WHERE h.pagesize = 8192 AND h.lower <= h.upper))
    FROM (SELECT pg_relation_size(r) / 8192 AS n) s $$;
SELECT pages('heavy');
DELETE FROM heavy WHERE i > 15000;
VACUUM (TRUNCATE, INDEX_CLEANUP ON) heavy;
SELECT pages('heavy');
INSERT INTO heavy SELECT i, i % 1000, repeat('n', 200) FROM generate_series(1, 10000) AS i;
SELECT count(*), sum(i), sum(length(t)) FROM heavy;
VACUUM FULL heavy;
SELECT pages('heavy');
CLUSTER heavy USING heavy_k;
SELECT count(*), sum(i) FROM heavy;
ALTER TABLE heavy SET UNLOGGED;
ALTER TABLE heavy SET LOGGED;
ALTER TABLE heavy SET (fillfactor = 50);
VACUUM (FULL, FREEZE, ANALYZE) heavy;
SELECT pages('heavy');
BEGIN;
TRUNCATE heavy, people;
INSERT INTO heavy SELECT 1, 1, 'one';
SELECT count(*) FROM heavy;
ROLLBACK;
SELECT count(*) FROM heavy;
SELECT count(*) FROM people;
BEGIN;
TRUNCATE long_values RESTART IDENTITY;
INSERT INTO long_values (plain) VALUES ('after') RETURNING id;
COMMIT;
SELECT count(*), pages('long_values') FROM long_values;
BEGIN;
SAVEPOINT a;
TRUNCATE parts_a;
INSERT INTO parts_a VALUES (1, '2020-05-05', 'in');
ROLLBACK TO a;
DROP TABLE parts_a;
ROLLBACK;
SELECT count(*) FROM parts_a;
BEGIN;
CREATE TABLE never AS SELECT generate_series(1, 10000) AS i;
SAVEPOINT b;
ALTER TABLE people RENAME TO folk;
CLUSTER folk USING people_pkey;
ROLLBACK;
SELECT to_regclass('never'), to_regclass('folk'), count(*) FROM people;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE own LOCATION '';
ALTER TABLE people SET TABLESPACE own;
ALTER INDEX people_name SET TABLESPACE own;
ALTER INDEX ALL IN TABLESPACE pg_default SET TABLESPACE own;
SELECT count(*), sum(id) FROM people;
CREATE TABLE spaced TABLESPACE own AS SELECT i, repeat('s', 300) AS t FROM generate_series(1, 10000) AS i;
SELECT pages('spaced');
DROP TABLESPACE own;
ALTER TABLE people SET TABLESPACE pg_default;
CREATE DATABASE logged TEMPLATE other STRATEGY wal_log;
CREATE DATABASE copied_files TEMPLATE other STRATEGY file_copy TABLESPACE own;
CREATE DATABASE fresh TEMPLATE template0 ENCODING 'UTF8';
\c logged
SELECT count(*), md5(string_agg(m, '' ORDER BY i)) FROM there;
DELETE FROM there WHERE i % 2 = 0;
VACUUM FULL;
\c copied_files
SELECT count(*), md5(string_agg(m, '' ORDER BY i)) FROM there;
INSERT INTO there SELECT i, 'later' FROM generate_series(1, 5000) AS i;
\c fresh
CREATE TABLE alone AS SELECT generate_series(1, 1000) AS i;
\c other
UPDATE there SET m = 'changed' WHERE i % 5 = 0;
SELECT count(*) FROM there WHERE m = 'changed';
\c postgres
ALTER DATABASE logged SET TABLESPACE own;
ALTER DATABASE copied_files RENAME TO renamed;
\c logged
SELECT count(*) FROM there;
\c renamed
SELECT count(*) FROM there;
\c postgres
DROP DATABASE fresh;
CHECKPOINT;
SELECT count(*) FROM unlogged_before;
INSERT INTO unlogged_before SELECT generate_series(1, 100);
CREATE UNLOGGED TABLE unlogged_after (i int PRIMARY KEY);
INSERT INTO unlogged_after SELECT generate_series(1, 1000);
BEGIN;
UPDATE people SET name = 'prepared' WHERE id % 100 = 1;
DELETE FROM heavy WHERE k = 1;
PREPARE TRANSACTION 'one';
BEGIN;
UPDATE people SET name = 'gone' WHERE id % 100 = 2;
CREATE TABLE never (i int);
PREPARE TRANSACTION 'two';
CHECKPOINT;
BEGIN;
UPDATE heavy SET t = 'three' WHERE k = 3;
PREPARE TRANSACTION 'three';
SELECT gid FROM pg_prepared_xacts ORDER BY gid;
