-- Every kind of index, made and used; scans of all kinds; data in and out.
CREATE FUNCTION found(OUT way text, OUT n bigint, OUT s bigint) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE q text;
BEGIN
    FOREACH q IN ARRAY ARRAY[
        $q$name = 'person ' || md5('77')$q$, $q$name LIKE '%c4ca42%'$q$, $q$born = date '1950-01-01' + 5000$q$,
        $q$tags @> ARRAY['t3', 't5']$q$, $q$place <@ box '(3,3),(20,20)'$q$, $q$span && int4range(500, 520)$q$,
        $q$id BETWEEN 7000 AND 7100$q$, $q$lower(name) > 'person f'$q$, $q$doc @> '{"i": 444}'$q$,
        $q$born < '1951-01-01' AND id % 10 = 0$q$]
    LOOP
        way := q;
        EXECUTE 'SELECT count(*), coalesce(sum(id), 0) FROM people WHERE ' || q INTO n, s;
        RETURN NEXT;
    END LOOP;
END $$;
SET enable_seqscan = off;
SELECT * FROM found();
SET enable_seqscan = on;
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SET enable_indexonlyscan = off;
SELECT * FROM found();
RESET ALL;
UPDATE people SET name = name || ' changed', place = place + point(1, 1), tags = tags || 'new'::text WHERE id % 4 = 0;
INSERT INTO people SELECT i + 30000, 'later ' || i, '2000-01-01', '{late}', point(i, -i), int4range(i, i + 3), '{"i": 444}'
FROM generate_series(1, 3000) AS i;
SET enable_seqscan = off;
SELECT * FROM found();
SELECT count(*) FROM people WHERE tags @> ARRAY['late'];
SELECT id FROM people ORDER BY place <-> point(5, 5), id LIMIT 5;
RESET ALL;
CREATE INDEX CONCURRENTLY people_two ON people (born, id) INCLUDE (name);
CREATE UNIQUE INDEX people_once ON people (id, born);
DROP INDEX CONCURRENTLY people_two;
REINDEX INDEX people_name;
REINDEX TABLE people;
REINDEX TABLE CONCURRENTLY people;
SELECT c.relname, bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relname LIKE 'people%' ORDER BY 1;
SET enable_seqscan = off;
SELECT * FROM found();
RESET ALL;
SET max_parallel_workers_per_gather = 4;
SET min_parallel_table_scan_size = 0;
SET min_parallel_index_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SELECT count(*), sum(i), sum(k), sum(length(t)) FROM heavy;
SELECT count(*), sum(h.i) FROM heavy h JOIN people p ON p.id = h.k;
SET max_parallel_maintenance_workers = 4;
CREATE INDEX heavy_i ON heavy (i, k);
SET enable_seqscan = off;
SELECT count(*), sum(i) FROM heavy WHERE i BETWEEN 100 AND 20000;
SELECT k, count(*) FROM heavy WHERE k < 3 GROUP BY k ORDER BY k;
RESET ALL;
SET work_mem = '64kB';
SELECT count(*), min(x), max(x) FROM (SELECT DISTINCT md5(i::text) AS x FROM heavy) s;
SELECT sum(r) FROM (SELECT row_number() OVER (ORDER BY t, i DESC) AS r FROM heavy) s;
RESET ALL;
BEGIN;
DECLARE walk SCROLL CURSOR FOR SELECT i FROM heavy ORDER BY k, i;
MOVE 1000 FROM walk;
FETCH 3 FROM walk;
FETCH BACKWARD 2 FROM walk;
COMMIT;
CREATE TEMP TABLE passing AS SELECT i, repeat('q', 500) AS t FROM generate_series(1, 5000) AS i;
CREATE INDEX ON passing (i);
SELECT count(*), sum(length(t)) FROM passing WHERE i % 2 = 0;
TRUNCATE passing;
SELECT count(*) FROM passing;
COPY (SELECT i, k FROM heavy WHERE i <= 5 ORDER BY i) TO STDOUT;
CREATE TABLE copied (i int, k int);
COPY copied FROM STDIN;
1	10
2	20
3	30
\.
COPY copied FROM STDIN (FORMAT csv);
4,40
5,wrong
\.
SELECT sum(i), sum(k) FROM copied;
BEGIN;
CREATE TABLE frozen (i int);
COPY frozen FROM STDIN (FREEZE);
1
2
\.
COMMIT;
SELECT count(*) FROM frozen;
SELECT count(*), sum(length(plain)), sum(length(packed)), md5(string_agg(md5(plain || packed), '' ORDER BY id)) FROM long_values;
UPDATE long_values SET plain = plain || 'x' WHERE id % 5 = 0;
DELETE FROM long_values WHERE id % 7 = 0;
SELECT substr(plain, 5000, 20) FROM long_values WHERE id = 10;
SELECT count(*), md5(string_agg(md5(plain || packed), '' ORDER BY id)) FROM long_values;
SELECT length(lo_get(4711)), md5(lo_get(4711));
SELECT lo_put(4711, 100000, 'changed'::bytea);
SELECT md5(lo_get(4711)), lo_get(4711, 99998, 10);
SELECT lo_from_bytea(4712, decode(repeat('ff', 50000), 'hex'));
SELECT lo_unlink(4711);
SELECT lo_get(4711);
SELECT loid, count(*) FROM pg_largeobject GROUP BY loid ORDER BY loid;
SELECT nextval('counted'), nextval('counted');
SELECT setval('counted', 5000);
ALTER SEQUENCE counted INCREMENT 3 RESTART 9;
SELECT nextval('counted');
INSERT INTO long_values (plain) VALUES ('next') RETURNING id;
