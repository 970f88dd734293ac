-- What the backup holds: every kind of relation, so that what follows meets pages that come from it.
CREATE EXTENSION pg_trgm;
CREATE EXTENSION btree_gist;
CREATE EXTENSION pageinspect;
CREATE TABLE people (id int PRIMARY KEY, name text, born date, tags text[], place point, span int4range, doc jsonb);
INSERT INTO people
SELECT i, 'person ' || md5(i::text), date '1950-01-01' + i % 20000, ARRAY['t' || i % 7, 't' || i % 11],
       point(i % 100, i / 100), int4range(i, i + 10), jsonb_build_object('i', i, 'odd', i % 2 = 1)
FROM generate_series(1, 8000) AS i;
CREATE INDEX people_name ON people (name);
CREATE INDEX people_hash ON people USING hash (born);
CREATE INDEX people_trgm ON people USING gin (name gin_trgm_ops);
CREATE INDEX people_tags ON people USING gin (tags);
CREATE INDEX people_place ON people USING gist (place);
CREATE INDEX people_span ON people USING gist (span);
CREATE INDEX people_quad ON people USING spgist (place);
CREATE INDEX people_brin ON people USING brin (id) WITH (pages_per_range = 8);
CREATE INDEX people_part ON people (born) WHERE id % 10 = 0;
CREATE INDEX people_expr ON people (lower(name));
CREATE INDEX people_doc ON people USING gin (doc jsonb_path_ops);
CREATE TABLE long_values (id serial PRIMARY KEY, plain text, packed text);
ALTER TABLE long_values ALTER plain SET STORAGE EXTERNAL;
INSERT INTO long_values (plain, packed)
SELECT (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 300) AS j), repeat(md5(i::text), 2000)
FROM generate_series(1, 120) AS i;
CREATE TABLE parts (id int, at date, v text) PARTITION BY RANGE (at);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parts_b PARTITION OF parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY HASH (id);
CREATE TABLE parts_b0 PARTITION OF parts_b FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_b1 PARTITION OF parts_b FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX ON parts (id);
INSERT INTO parts SELECT i, date '2020-01-01' + i % 730, repeat('p', 100) FROM generate_series(1, 8000) AS i;
CREATE UNLOGGED TABLE unlogged_before AS SELECT i FROM generate_series(1, 5000) AS i;
CREATE SEQUENCE counted START 100 INCREMENT 7 CACHE 5;
SELECT nextval('counted');
CREATE MATERIALIZED VIEW by_tag AS SELECT tag, count(*) FROM people, unnest(tags) AS tag GROUP BY tag;
CREATE UNIQUE INDEX ON by_tag (tag);
SELECT lo_create(4711);
SELECT lo_put(4711, 0, decode(repeat('0123456789abcdef', 20000), 'hex'));
CREATE TABLE heavy AS SELECT i, i % 1000 AS k, repeat('h', 200) AS t FROM generate_series(1, 30000) AS i;
CREATE INDEX heavy_k ON heavy (k);
CREATE DATABASE other;
\c other
CREATE TABLE there AS SELECT i, md5(i::text) AS m FROM generate_series(1, 8000) AS i;
CREATE INDEX ON there (m);
\c postgres
VACUUM ANALYZE;
