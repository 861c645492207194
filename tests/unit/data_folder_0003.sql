BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE "artifact" (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	digest VARCHAR, 
	size BIGINT, 
	state VARCHAR NOT NULL, 
	message VARCHAR, 
	source VARCHAR, 
	job_id VARCHAR, 
	attempt INTEGER, 
	run_path VARCHAR, 
	metrics JSON NOT NULL, 
	created_at FLOAT NOT NULL, 
	version INTEGER DEFAULT '1' NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_artifact_name_version UNIQUE (name, version)
);
INSERT INTO "artifact" VALUES('6p2s61wsh52kr5-model','base-model','model','/DATA/jobs/6p2s61wsh52kr5/run/model',NULL,NULL,'ready',NULL,'job:base','6p2s61wsh52kr5',1,'model','{}',1.79589275307033491139e+09,1);
CREATE TABLE attempt (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_id VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	reason VARCHAR, 
	message VARCHAR, 
	master_address VARCHAR NOT NULL, 
	master_port INTEGER, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	released_at FLOAT, 
	final BOOLEAN NOT NULL, 
	stopping_at FLOAT, 
	stop_deadline FLOAT, 
	finished_at FLOAT, 
	FOREIGN KEY(job_id) REFERENCES job (id), 
	UNIQUE (job_id, number)
);
INSERT INTO "attempt" VALUES(1,'6p2s61wsh52kr5',1,'succeeded','completed','finished with exit code 0','127.0.0.1',NULL,1800000000.0,1800000000.0,NULL,0,1800000000.0,1800000005.0,1800000000.0);
INSERT INTO "attempt" VALUES(2,'6p2s626rfcpw7a',1,'failed','user_error','exit code 3: started','127.0.0.1',NULL,1800000060.0,1800000060.0,NULL,0,1800000060.0,1800000065.0,1800000060.0);
INSERT INTO "attempt" VALUES(3,'6p2s62awpr0qfy',1,'running',NULL,NULL,'10.0.0.1',20520,1800000120.0,1800000120.0,1800000120.0,0,NULL,NULL,NULL);
INSERT INTO "attempt" VALUES(4,'6p2s62e07w7zej',1,'running',NULL,NULL,'127.0.0.1',NULL,1800000120.0,1800000120.0,NULL,0,NULL,NULL,NULL);
INSERT INTO "attempt" VALUES(5,'6p2s62jk7cmyj1',1,'stopping','stopped_by_user','stopped on request','127.0.0.1',NULL,1800000120.0,1800000120.0,NULL,0,1800000120.0,1800000125.0,NULL);
INSERT INTO "attempt" VALUES(6,'6p2s62v1rbgmae',1,'provisioning',NULL,NULL,'127.0.0.1',NULL,1800000120.0,NULL,NULL,0,NULL,NULL,NULL);
CREATE TABLE event (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time FLOAT NOT NULL, 
	actor VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	subject VARCHAR NOT NULL, 
	job_id VARCHAR, 
	job_name VARCHAR, 
	old VARCHAR, 
	new VARCHAR, 
	reason VARCHAR, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL
);
INSERT INTO "event" VALUES(1,1.7958927511659829616e+09,'lee','job.submitted','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base',NULL,'queued',NULL,'base was submitted','{}');
INSERT INTO "event" VALUES(2,1800000000.0,'controller','job.state','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base','queued','provisioning',NULL,'attempt 1 is being started on h1','{}');
INSERT INTO "event" VALUES(3,1800000000.0,'controller','job.state','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base','provisioning','running',NULL,'runs','{}');
INSERT INTO "event" VALUES(4,1800000000.0,'controller','job.state','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base','running','stopping','completed','its container has ended; the rest of its log is being stored','{}');
INSERT INTO "event" VALUES(5,1.7958927530708982945e+09,'controller','artifact.registered','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base',NULL,NULL,NULL,'base left model base-model@1','{}');
INSERT INTO "event" VALUES(6,1800000000.0,'controller','job.state','job/6p2s61wsh52kr5','6p2s61wsh52kr5','base','stopping','succeeded','completed','finished with exit code 0','{}');
INSERT INTO "event" VALUES(7,1.79589275359137487408e+09,'','job.submitted','job/6p2s626rfcpw7a','6p2s626rfcpw7a','failed',NULL,'queued',NULL,'failed was submitted','{}');
INSERT INTO "event" VALUES(8,1800000060.0,'controller','job.state','job/6p2s626rfcpw7a','6p2s626rfcpw7a','failed','queued','provisioning',NULL,'attempt 1 is being started on h1','{}');
INSERT INTO "event" VALUES(9,1800000060.0,'controller','job.state','job/6p2s626rfcpw7a','6p2s626rfcpw7a','failed','provisioning','running',NULL,'runs','{}');
INSERT INTO "event" VALUES(10,1800000060.0,'controller','job.state','job/6p2s626rfcpw7a','6p2s626rfcpw7a','failed','running','stopping','user_error','its container has ended; the rest of its log is being stored','{}');
INSERT INTO "event" VALUES(11,1800000060.0,'controller','job.state','job/6p2s626rfcpw7a','6p2s626rfcpw7a','failed','stopping','failed','user_error','exit code 3: started','{}');
INSERT INTO "event" VALUES(12,1.79589275477136659626e+09,'','job.submitted','job/6p2s62awpr0qfy','6p2s62awpr0qfy','gang',NULL,'queued',NULL,'gang was submitted','{}');
INSERT INTO "event" VALUES(13,1800000120.0,'controller','job.state','job/6p2s62awpr0qfy','6p2s62awpr0qfy','gang','queued','provisioning',NULL,'attempt 1 is being started on h1, h2','{}');
INSERT INTO "event" VALUES(14,1800000120.0,'controller','job.state','job/6p2s62awpr0qfy','6p2s62awpr0qfy','gang','provisioning','running',NULL,'runs in 2 containers','{}');
INSERT INTO "event" VALUES(15,1.79589275570186519617e+09,'','job.submitted','job/6p2s62e07w7zej','6p2s62e07w7zej','chained',NULL,'queued',NULL,'chained was submitted','{}');
INSERT INTO "event" VALUES(16,1800000120.0,'controller','job.state','job/6p2s62e07w7zej','6p2s62e07w7zej','chained','queued','provisioning',NULL,'attempt 1 is being started on h1','{}');
INSERT INTO "event" VALUES(17,1800000120.0,'controller','job.state','job/6p2s62e07w7zej','6p2s62e07w7zej','chained','provisioning','running',NULL,'runs','{}');
INSERT INTO "event" VALUES(18,1.79589275671838402743e+09,'','job.submitted','job/6p2s62jk7cmyj1','6p2s62jk7cmyj1','stopping',NULL,'queued',NULL,'stopping was submitted','{}');
INSERT INTO "event" VALUES(19,1800000120.0,'controller','job.state','job/6p2s62jk7cmyj1','6p2s62jk7cmyj1','stopping','queued','provisioning',NULL,'attempt 1 is being started on h2','{}');
INSERT INTO "event" VALUES(20,1800000120.0,'controller','job.state','job/6p2s62jk7cmyj1','6p2s62jk7cmyj1','stopping','provisioning','running',NULL,'runs','{}');
INSERT INTO "event" VALUES(21,1.79589275785555863374e+09,'','job.stop_requested','job/6p2s62jk7cmyj1','6p2s62jk7cmyj1','stopping',NULL,NULL,NULL,'a user asked stopping to stop','{}');
INSERT INTO "event" VALUES(22,1800000120.0,'controller','job.state','job/6p2s62jk7cmyj1','6p2s62jk7cmyj1','stopping','running','stopping','stopped_by_user','stopped on request','{}');
INSERT INTO "event" VALUES(23,1.79589275877488350864e+09,'','job.submitted','job/6p2s62ta3j6ze5','6p2s62ta3j6ze5','queued',NULL,'queued',NULL,'queued was submitted','{}');
INSERT INTO "event" VALUES(24,1.79589275887760758398e+09,'','job.submitted','job/6p2s62vrsd6j1a','6p2s62vrsd6j1a','waits',NULL,'queued',NULL,'waits was submitted','{}');
INSERT INTO "event" VALUES(25,1.79589275897532033923e+09,'','job.submitted','job/6p2s62v1rbgmae','6p2s62v1rbgmae','starting',NULL,'queued',NULL,'starting was submitted','{}');
INSERT INTO "event" VALUES(26,1800000120.0,'controller','job.state','job/6p2s62v1rbgmae','6p2s62v1rbgmae','starting','queued','provisioning',NULL,'attempt 1 is being started on h1','{}');
CREATE TABLE gpu_lease (
	gpu VARCHAR NOT NULL, 
	host_id VARCHAR NOT NULL, 
	attempt_id INTEGER NOT NULL, 
	PRIMARY KEY (gpu), 
	FOREIGN KEY(attempt_id) REFERENCES attempt (id), 
	FOREIGN KEY(host_id) REFERENCES host (id)
);
INSERT INTO "gpu_lease" VALUES('GPU-h1-0','h1',3);
INSERT INTO "gpu_lease" VALUES('GPU-h2-0','h2',3);
INSERT INTO "gpu_lease" VALUES('GPU-h1-1','h1',4);
INSERT INTO "gpu_lease" VALUES('GPU-h2-1','h2',5);
CREATE TABLE host (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	url VARCHAR NOT NULL, 
	address VARCHAR NOT NULL, 
	lifecycle VARCHAR NOT NULL, 
	reachable BOOLEAN NOT NULL, 
	unreachable_since FLOAT, 
	health VARCHAR NOT NULL, 
	message VARCHAR, 
	boot_id VARCHAR, 
	engine_id VARCHAR, 
	facts JSON NOT NULL, 
	first_port INTEGER NOT NULL, 
	last_port INTEGER NOT NULL, 
	max_containers INTEGER NOT NULL, 
	seen_at FLOAT, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "host" VALUES('h1','h1','sim://h1','10.0.0.1','active',1,NULL,'unknown',NULL,'boot-1','sim','{"cpus": 4, "memory_bytes": 17179869184, "gpus": [{"uuid": "GPU-h1-0", "name": "sim", "memory_mib": 1, "index": 0}, {"uuid": "GPU-h1-1", "name": "sim", "memory_mib": 1, "index": 1}], "engine_version": "1"}',20000,21999,4,NULL);
INSERT INTO "host" VALUES('h2','h2','sim://h2','10.0.0.2','active',1,NULL,'unknown',NULL,NULL,NULL,'{"cpus": 4, "memory_bytes": 17179869184, "gpus": [{"uuid": "GPU-h2-0", "name": "sim", "memory_mib": 1, "index": 0}, {"uuid": "GPU-h2-1", "name": "sim", "memory_mib": 1, "index": 1}]}',20000,21999,4,NULL);
CREATE TABLE idempotency (
	"key" VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "idempotency" VALUES('k1','891b9bf2ac21ae6d0088fd401b5d7107386d8d12141ea70e812df043bf17cb31','6p2s61wsh52kr5',1.79589275116622638702e+09);
CREATE TABLE image_build (
	id VARCHAR NOT NULL, 
	recipe VARCHAR NOT NULL, 
	tag VARCHAR NOT NULL, 
	options JSON NOT NULL, 
	state VARCHAR NOT NULL, 
	message VARCHAR, 
	image_id VARCHAR, 
	owner VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	starts INTEGER NOT NULL, 
	lease_owner VARCHAR, 
	lease_until FLOAT NOT NULL, 
	lease_token INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "image_build" VALUES('build1','cpu','navarch/cpu:latest','{}','running',NULL,NULL,'',1.79589275927471280101e+09,1800000120.0,NULL,1,'gone:1:x',1800000150.0,1);
CREATE TABLE job (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	type VARCHAR NOT NULL, 
	document JSON NOT NULL, 
	secrets BLOB, 
	resolved JSON NOT NULL, 
	owner VARCHAR NOT NULL, 
	priority INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	reason VARCHAR, 
	message VARCHAR, 
	why VARCHAR, 
	desired VARCHAR NOT NULL, 
	nodes INTEGER NOT NULL, 
	gpus INTEGER NOT NULL, 
	ports JSON NOT NULL, 
	attempts INTEGER NOT NULL, 
	user_retries INTEGER NOT NULL, 
	system_retries INTEGER NOT NULL, 
	progress JSON NOT NULL, 
	host_key VARCHAR, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	not_before FLOAT NOT NULL, 
	unreachable_since FLOAT, 
	failures INTEGER NOT NULL, 
	lease_owner VARCHAR, 
	lease_until FLOAT NOT NULL, 
	lease_token INTEGER NOT NULL, demand VARCHAR DEFAULT '' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "job" VALUES('6p2s61wsh52kr5','base','sft','{"type": "sft", "image": "cpu", "name": "base", "model": "hf:org/base", "data": [{"path": "/DATA/rows.jsonl"}], "grace": 5}',NULL,'{"training": {"model": "hf:org/base", "data": [{"path": "/DATA/rows.jsonl"}]}, "mounts": [{"source": "/DATA/rows.jsonl", "target": "/DATA/rows.jsonl", "read_only": true}]}','lee',50,'succeeded','completed','finished with exit code 0',NULL,'run',1,0,'{"fixed": [], "pool": 1}',1,0,0,'{}','ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIARKd8UTRLwFb3a77JDlGuKQHlMHnSVcQOEiNmGmv7XU navarch-base',1.79589275116537237168e+09,1800000000.0,1800000000.0,0.0,NULL,0,NULL,0.0,5,'caf098af60df60eb');
INSERT INTO "job" VALUES('6p2s626rfcpw7a','failed','command','{"type": "command", "image": "cpu", "command": "false", "grace": 5, "name": "failed"}',NULL,'{"training": {}, "mounts": []}','',50,'failed','user_error','exit code 3: started',NULL,'run',1,0,'{"fixed": [], "pool": 1}',1,0,0,'{}','ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHXdxe/g7sPA/EqbMm8MXinxDTwau6FopwpmTpcFlSxT navarch-failed',1.79589275359098529813e+09,1800000060.0,1800000060.0,0.0,NULL,0,NULL,0.0,5,'caf098af60df60eb');
INSERT INTO "job" VALUES('6p2s62awpr0qfy','gang','command','{"type": "command", "image": "cpu", "command": "sleep 9", "grace": 5, "name": "gang", "resources": {"nodes": 2, "gpus": 1, "memory": "2GB"}, "ports": [7000], "secrets": {"TOKEN": "********"}}',X'674141414141427243795953523037664847523978666763426B59472D747638724E626A5A46306A6C4148685A31385A4530324D4B4259676C335948654838486D37526D37544C3939355F757746485645364D48564A666F4E32685242464B7A4F536245456E424F4C657435794C61414F4B31733278493D','{"training": {}, "mounts": []}','',50,'running',NULL,'runs in 2 containers',NULL,'run',2,1,'{"fixed": [7000], "pool": 1}',1,0,0,'{}','ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAS105cS8QaVzyo2bcbq/9pPk0/3rocLgonVcbHUVESO navarch-gang',1.79589275477106881146e+09,1800000120.0,NULL,0.0,NULL,0,NULL,0.0,12,'6439ddb50c215236');
INSERT INTO "job" VALUES('6p2s62e07w7zej','chained','serve','{"type": "serve", "image": "cpu", "name": "chained", "model": "artifact:base-model", "resources": {"gpus": 1}}',NULL,'{"training": {"model": "/workspace/artifacts/base-model"}, "mounts": [{"source": "/DATA/jobs/6p2s61wsh52kr5/run/model", "target": "/workspace/artifacts/base-model", "read_only": true}]}','',50,'running',NULL,'runs',NULL,'run',1,1,'{"fixed": [], "pool": 2}',1,0,0,'{}','ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHWwbsz1CLnviNtyMZ8t57O+PPJO/ecIozxg4+puNn+u navarch-chained',1.79589275566787147514e+09,1800000120.0,NULL,0.0,NULL,0,NULL,0.0,9,'196dcbbd007b39bf');
INSERT INTO "job" VALUES('6p2s62jk7cmyj1','stopping','command','{"type": "command", "image": "cpu", "command": "true", "grace": 5, "name": "stopping", "resources": {"gpus": 1}}',NULL,'{"training": {}, "mounts": []}','',50,'stopping','stopped_by_user','stopped on request',NULL,'stop',1,1,'{"fixed": [], "pool": 1}',1,0,0,'{}','ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIODaWVcRAO1LOXQFEJ2T27/KIXZsCg9oXrAIQ2VJSFZ6 navarch-stopping',1.79589275671808385847e+09,1800000120.0,NULL,0.0,NULL,0,NULL,0.0,6,'0c8d1fc6cd348c61');
INSERT INTO "job" VALUES('6p2s62ta3j6ze5','queued','command','{"type": "command", "image": "cpu", "command": "true", "grace": 5, "name": "queued", "resources": {"gpus": 2, "cpus": 1, "memory": "1GB"}, "max_duration": "1h"}',NULL,'{"training": {}, "mounts": []}','',50,'queued',NULL,'waits for its turn','needs 2 GPUs on one host: h1 has 0 of 2 free; h2 has 0 of 2 free','run',1,2,'{"fixed": [], "pool": 1}',0,0,0,'{}',NULL,1.79589275877445077897e+09,NULL,NULL,0.0,NULL,0,NULL,0.0,0,'c53eb986d2e847ca');
INSERT INTO "job" VALUES('6p2s62vrsd6j1a','waits','command','{"type": "command", "image": "cpu", "command": "true", "grace": 5, "name": "waits", "after": ["6p2s62ta3j6ze5"]}',NULL,'{"training": {}, "mounts": []}','',50,'queued',NULL,'waits for its turn','waits for job queued (queued)','run',1,0,'{"fixed": [], "pool": 1}',0,0,0,'{}',NULL,1.79589275884757089613e+09,NULL,NULL,1000000000000.0,NULL,0,NULL,0.0,0,'caf098af60df60eb');
INSERT INTO "job" VALUES('6p2s62v1rbgmae','starting','command','{"type": "command", "image": "cpu", "command": "true", "grace": 5, "name": "starting"}',NULL,'{"training": {}, "mounts": []}','',50,'provisioning',NULL,'attempt 1 is being started on h1',NULL,'run',1,0,'{"fixed": [], "pool": 1}',1,0,0,'{}',NULL,1.79589275897506427765e+09,NULL,NULL,0.0,NULL,0,'gone:1:x',1800000150.0,7,'caf098af60df60eb');
CREATE TABLE job_input (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_id VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	target VARCHAR NOT NULL, 
	version INTEGER, 
	artifact_id VARCHAR, 
	digest VARCHAR, 
	maker_id VARCHAR, 
	maker_name VARCHAR, 
	FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "job_input" VALUES(1,'6p2s62e07w7zej','model','base-model','/workspace/artifacts/base-model',1,'6p2s61wsh52kr5-model',NULL,'6p2s61wsh52kr5','base');
INSERT INTO "job_input" VALUES(2,'6p2s62vrsd6j1a','after[0]','','',NULL,NULL,NULL,'6p2s62ta3j6ze5','queued');
CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('deployment','deployment');
INSERT INTO "meta" VALUES('artifact/base-model','1');
CREATE TABLE port_lease (
	host_id VARCHAR NOT NULL, 
	port INTEGER NOT NULL, 
	attempt_id INTEGER NOT NULL, 
	PRIMARY KEY (host_id, port), 
	FOREIGN KEY(attempt_id) REFERENCES attempt (id), 
	FOREIGN KEY(host_id) REFERENCES host (id)
);
INSERT INTO "port_lease" VALUES('h1',20520,3);
INSERT INTO "port_lease" VALUES('h1',20519,3);
INSERT INTO "port_lease" VALUES('h1',7000,3);
INSERT INTO "port_lease" VALUES('h2',20519,3);
INSERT INTO "port_lease" VALUES('h1',21694,4);
INSERT INTO "port_lease" VALUES('h1',21695,4);
INSERT INTO "port_lease" VALUES('h2',20403,5);
INSERT INTO "port_lease" VALUES('h1',20681,6);
CREATE TABLE replica (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	attempt_id INTEGER NOT NULL, 
	job_id VARCHAR NOT NULL, 
	node_rank INTEGER NOT NULL, 
	host_id VARCHAR NOT NULL, 
	container_name VARCHAR NOT NULL, 
	container_id VARCHAR, 
	state VARCHAR NOT NULL, 
	gpus JSON NOT NULL, 
	ports JSON NOT NULL, 
	exit_code INTEGER, 
	oom_killed BOOLEAN NOT NULL, 
	error VARCHAR, 
	error_kind VARCHAR, 
	error_message VARCHAR, 
	started_at FLOAT, 
	finished_at FLOAT, 
	signalled_at FLOAT, 
	harvested_at FLOAT, 
	removed_at FLOAT, 
	lifted BIGINT NOT NULL, 
	FOREIGN KEY(attempt_id) REFERENCES attempt (id), 
	FOREIGN KEY(host_id) REFERENCES host (id), 
	FOREIGN KEY(job_id) REFERENCES job (id), 
	UNIQUE (attempt_id, node_rank)
);
INSERT INTO "replica" VALUES(1,1,'6p2s61wsh52kr5',0,'h1','navarch-deployme-base-1-0','c1','exited','[]','{"22": 20568}',0,0,NULL,NULL,NULL,1800000000.0,1800000000.0,NULL,1800000000.0,1800000000.0,135);
INSERT INTO "replica" VALUES(2,2,'6p2s626rfcpw7a',0,'h1','navarch-deployme-failed-1-0','c2','exited','[]','{"22": 20012}',3,0,NULL,NULL,NULL,1800000060.0,1800000060.0,NULL,1800000060.0,1800000060.0,39);
INSERT INTO "replica" VALUES(3,3,'6p2s62awpr0qfy',0,'h1','navarch-deployme-gang-1-0','c3','ready','["GPU-h1-0"]','{"22": 20519, "7000": 7000}',NULL,0,NULL,NULL,NULL,1800000120.0,NULL,NULL,NULL,NULL,0);
INSERT INTO "replica" VALUES(4,3,'6p2s62awpr0qfy',1,'h2','navarch-deployme-gang-1-1','c1','ready','["GPU-h2-0"]','{"22": 20519}',NULL,0,NULL,NULL,NULL,1800000120.0,NULL,NULL,NULL,NULL,0);
INSERT INTO "replica" VALUES(5,4,'6p2s62e07w7zej',0,'h1','navarch-deployme-chained-1-0','c4','ready','["GPU-h1-1"]','{"22": 21694, "8000": 21695}',NULL,0,NULL,NULL,NULL,1800000120.0,NULL,NULL,NULL,NULL,0);
INSERT INTO "replica" VALUES(6,5,'6p2s62jk7cmyj1',0,'h2','navarch-deployme-stopping-1-0','c2','ready','["GPU-h2-1"]','{"22": 20403}',NULL,0,NULL,NULL,NULL,1800000120.0,NULL,1800000120.0,NULL,NULL,0);
INSERT INTO "replica" VALUES(7,6,'6p2s62v1rbgmae',0,'h1','navarch-deployme-starting-1-0',NULL,'pending','[]','{"22": 20681}',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0);
CREATE INDEX ix_event_job_id ON event (job_id);
CREATE INDEX ix_event_subject ON event (subject);
CREATE INDEX ix_image_build_state ON image_build (state);
CREATE UNIQUE INDEX ix_job_active_name ON job (name) WHERE finished_at IS NULL;
CREATE INDEX ix_job_list ON job (created_at, id);
CREATE INDEX ix_job_name ON job (name, created_at);
CREATE INDEX ix_attempt_job_id ON attempt (job_id);
CREATE INDEX ix_gpu_lease_attempt_id ON gpu_lease (attempt_id);
CREATE INDEX ix_gpu_lease_host_id ON gpu_lease (host_id);
CREATE INDEX ix_port_lease_attempt_id ON port_lease (attempt_id);
CREATE INDEX ix_replica_attempt_id ON replica (attempt_id);
CREATE INDEX ix_replica_job_id ON replica (job_id);
CREATE UNIQUE INDEX ix_replica_live_container ON replica (container_name) WHERE removed_at IS NULL;
CREATE INDEX ix_job_queue ON job (state, desired, demand, priority DESC, created_at, id, not_before);
CREATE INDEX ix_job_retry ON job (state, not_before);
CREATE INDEX ix_job_state_list ON job (state, created_at, id);
CREATE INDEX ix_artifact_job_id ON artifact (job_id);
CREATE INDEX ix_job_input_job_id ON job_input (job_id);
CREATE INDEX ix_job_input_artifact_id ON job_input (artifact_id);
CREATE INDEX ix_job_input_missing ON job_input (job_id) WHERE version IS NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',26);
INSERT INTO "sqlite_sequence" VALUES('attempt',6);
INSERT INTO "sqlite_sequence" VALUES('replica',7);
INSERT INTO "sqlite_sequence" VALUES('job_input',2);
COMMIT;
