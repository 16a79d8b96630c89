//! The tables as a [`Cluster`].

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use hatchery_common::{
    access::Scope,
    id::{Epoch, JobId, Name},
    recipe::{JobSpec, Reader},
    time::Timestamp,
    trainer::Metrics,
};
use hatchery_scheduler::{
    Certificate, Checkpoint, Cluster, Dataset, Failure, Holder, Job, JobPhase, JoinToken, Lease,
    MeasuredSpeed, Node, RetiredCheckpoint, Rollout, SpeedKey, Workload,
};
use rusqlite::Row;
use serde::de::DeserializeOwned;

use super::{StoreError, connection::Database};

pub(super) fn cluster(database: &Database) -> Result<Cluster, StoreError> {
    let mut cluster = Cluster::default();
    let last = database.query("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get::<_, i64>(0))?;
    cluster.last_event = last.first().copied().unwrap_or(0) as u64;

    let table = Table { database, name: "tokens" };
    table.each("SELECT * FROM tokens", |row| {
        let token = JoinToken {
            scope: scope(&row.text("scope")?)?,
            name: row.optional_name("name")?,
            labels: row.json("labels")?,
            created_by: row.name("created_by")?,
            created_at: row.time("created_at")?,
            expires_at: row.time("expires_at")?,
            used_at: row.optional_time("used_at")?,
        };
        cluster.tokens.insert(row.parse("secret")?, token);
        Ok(())
    })?;
    Table { name: "nodes", ..table }.each("SELECT * FROM nodes WHERE removed_at IS NULL", |row| {
        let node = Node {
            id: row.parse("id")?,
            name: row.name("name")?,
            labels: row.json("labels")?,
            inventory: row.json("inventory")?,
            joined_at: row.time("joined_at")?,
            mode: row.parse("mode")?,
        };
        cluster.nodes.insert(node.id, node);
        Ok(())
    })?;
    Table { name: "certificates", ..table }.each("SELECT * FROM certificates", |row| {
        let certificate = Certificate {
            id: row.parse("id")?,
            scope: scope(&row.text("scope")?)?,
            node: row.optional("node")?,
            name: row.name("name")?,
            issued_at: row.time("issued_at")?,
            revoked_at: row.optional_time("revoked_at")?,
        };
        cluster.certificates.insert(certificate.id, certificate);
        Ok(())
    })?;
    Table { name: "datasets", ..table }.each("SELECT * FROM datasets", |row| {
        let dataset = Dataset { manifest: row.json("manifest")?, registered_at: row.time("registered_at")? };
        cluster.datasets.insert(row.parse("id")?, dataset);
        Ok(())
    })?;
    let kept = "SELECT * FROM checkpoints WHERE retired_at IS NULL";
    Table { name: "checkpoints", ..table }.each(kept, |row| {
        let checkpoint = Checkpoint {
            manifest: row.json("manifest")?,
            committed_at: row.time("committed_at")?,
            late: row.number("late")? != 0,
            self_test: row.optional_json("self_test")?,
            is_pinned: row.number("is_pinned")? != 0,
        };
        cluster.checkpoints.insert(row.parse("id")?, checkpoint);
        Ok(())
    })?;
    let retired = "SELECT id, job, epoch, step FROM checkpoints WHERE retired_at IS NOT NULL";
    Table { name: "checkpoints", ..table }.each(retired, |row| {
        let (job, epoch) = (row.parse("job")?, Epoch(row.number("epoch")?));
        let retired = RetiredCheckpoint { job, epoch, step: row.number("step")? };
        cluster.retired.insert(row.parse("id")?, retired);
        Ok(())
    })?;
    Table { name: "rollouts", ..table }.each("SELECT * FROM rollouts", |row| {
        let rollout = Rollout {
            id: row.parse("id")?,
            checkpoint: row.parse("checkpoint")?,
            to: row.json("selector")?,
            by: row.name("asked_by")?,
            at: row.time("asked_at")?,
            activate: row.number("activate")? != 0,
            bytes_per_sec_max: row.get::<Option<i64>>("bytes_per_sec_max")?.map(|rate| rate as u64),
            withdrawn_at: row.optional_time("withdrawn_at")?,
            not_on: row.json("not_on")?,
        };
        cluster.rollouts.insert(rollout.id, rollout);
        Ok(())
    })?;
    Table { name: "requests", ..table }.each("SELECT * FROM requests", |row| {
        cluster.requests.insert(row.parse("id")?, (row.parse("body")?, row.parse("job")?));
        Ok(())
    })?;
    Table { name: "speeds", ..table }.each("SELECT * FROM speeds", |row| {
        let workload = Workload(row.parse("workload")?);
        let key = SpeedKey { node: row.parse("node")?, device: row.parse("device")?, workload };
        let speed = MeasuredSpeed {
            steps_per_sec: row.get("steps_per_sec")?,
            spread: row.get("spread")?,
            measurements: row.get("measurements")?,
            at: row.time("at")?,
        };
        cluster.speeds.insert(key, speed);
        Ok(())
    })?;
    jobs(database, &mut cluster)?;
    Ok(cluster)
}

/// Jobs with their leases (the open attempts), the nodes of their attempts and their failures.
fn jobs(database: &Database, cluster: &mut Cluster) -> Result<(), StoreError> {
    let mut leases: BTreeMap<JobId, Lease> = BTreeMap::new();
    let table = Table { database, name: "attempts" };
    table.each("SELECT * FROM attempts WHERE ended_at IS NULL", |row| {
        let lease = Lease {
            node: row.parse("node")?,
            device: row.parse("device")?,
            granted_at: row.time("granted_at")?,
            resume_from: row.optional("resume_from")?,
        };
        leases.insert(row.parse("job")?, lease);
        Ok(())
    })?;
    Table { name: "jobs", ..table }.each("SELECT * FROM jobs", |row| {
        let id = row.parse("id")?;
        let checkpoint = row.optional("checkpoint")?;
        let committed = checkpoint.and_then(|checkpoint| cluster.checkpoints.get(&checkpoint));
        let spec = JobSpec::read(row.text("spec")?.as_bytes(), Reader::Coordinator)
            .map_err(|error| format!("spec: {error}"))?;
        let job = Job {
            id,
            submitter: row.name("submitter")?,
            submitted_at: row.time("submitted_at")?,
            phase: JobPhase::named(&row.text("phase")?, row.get("why")?)
                .map_err(|error| error.to_string())?,
            epoch: Epoch(row.number("epoch")?),
            lease: leases.remove(&id),
            hand_over: row.optional_json("hand_over")?,
            started_at: row.optional_time("started_at")?,
            ended_at: row.optional_time("ended_at")?,
            checkpoint,
            start_step: cluster.start_step(&spec),
            best: cluster.best_checkpoint(id),
            checkpoint_step: row.number("checkpoint_step")?,
            metrics: committed.map_or_else(Metrics::default, |checkpoint| checkpoint.manifest.metrics),
            spec,
            holders: Vec::new(),
            failures: Vec::new(),
            not_before: row.optional_time("not_before")?,
        };
        cluster.jobs.insert(id, job);
        Ok(())
    })?;
    table.each("SELECT job, epoch, node FROM attempts ORDER BY job, epoch", |row| {
        let holder = Holder { epoch: Epoch(row.number("epoch")?), node: row.parse("node")? };
        if let Some(job) = cluster.jobs.get_mut(&row.parse("job")?) {
            job.remember_holder(holder);
        }
        Ok(())
    })?;
    let sql = "SELECT job, epoch, node, device, cause, message, at
               FROM failures JOIN attempts USING (job, epoch) ORDER BY job, epoch";
    Table { name: "failures", ..table }.each(sql, |row| {
        let failure = Failure {
            epoch: Epoch(row.number("epoch")?),
            node: row.parse("node")?,
            device: row.parse("device")?,
            cause: row.word("cause")?,
            message: row.text("message")?,
            at: row.time("at")?,
        };
        if let Some(job) = cluster.jobs.get_mut(&row.parse("job")?) {
            job.remember_failure(failure);
        }
        Ok(())
    })
}

fn scope(word: &str) -> Result<Scope, String> {
    word.parse::<Scope>().map_err(|error| error.to_string())
}

pub(super) fn unreadable(database: &Database, table: &'static str, why: String) -> StoreError {
    StoreError::Unreadable { path: database.path().to_owned(), table, why }
}

/// A table being read.
#[derive(Clone, Copy)]
struct Table<'a> {
    database: &'a Database,
    name: &'static str,
}

impl Table<'_> {
    /// Hands every row that `sql` gives to `read`, which says what is wrong with one that it cannot read.
    fn each(
        self,
        sql: &str,
        mut read: impl FnMut(&Columns<'_, '_>) -> Result<(), String>,
    ) -> Result<(), StoreError> {
        let rows = self.database.query(sql, [], |row| Ok(read(&Columns(row))))?;
        rows.into_iter()
            .collect::<Result<(), String>>()
            .map_err(|why| unreadable(self.database, self.name, why))
    }
}

/// The columns of one row by name; errors name the column.
struct Columns<'a, 'b>(&'a Row<'b>);

impl Columns<'_, '_> {
    fn get<T: rusqlite::types::FromSql>(&self, column: &str) -> Result<T, String> {
        self.0.get(column).map_err(|error| format!("{column}: {error}"))
    }

    fn text(&self, column: &str) -> Result<String, String> {
        self.get(column)
    }

    fn number(&self, column: &str) -> Result<u64, String> {
        self.get::<i64>(column).map(|number| number as u64)
    }

    fn time(&self, column: &str) -> Result<Timestamp, String> {
        self.number(column).map(Timestamp)
    }

    fn optional_time(&self, column: &str) -> Result<Option<Timestamp>, String> {
        Ok(self.get::<Option<i64>>(column)?.map(|number| Timestamp(number as u64)))
    }

    fn parse<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T, String> {
        self.text(column)?.parse().map_err(|error| format!("{column}: {error}"))
    }

    fn optional<T: FromStr<Err: Display>>(&self, column: &str) -> Result<Option<T>, String> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse().map_err(|error| format!("{column}: {error}"))).transpose()
    }

    fn name(&self, column: &str) -> Result<Name, String> {
        Name::new(column, &self.text(column)?).map_err(|error| error.to_string())
    }

    fn optional_name(&self, column: &str) -> Result<Option<Name>, String> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| Name::new(column, &text).map_err(|error| error.to_string())).transpose()
    }

    /// One word that is a value of `T` by its serde name.
    fn word<T: DeserializeOwned>(&self, column: &str) -> Result<T, String> {
        let word = serde_json::Value::String(self.text(column)?);
        serde_json::from_value(word).map_err(|error| format!("{column}: {error}"))
    }

    fn optional_json<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, String> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| format!("{column}: {error}"))).transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, String> {
        serde_json::from_str(&self.text(column)?).map_err(|error| format!("{column}: {error}"))
    }
}
