//! Two databases row by row, whatever their tables are.

use std::path::Path;

use super::{StoreError, connection::Database};

/// The name under which the other database is attached.
const OTHER: &str = "other";

/// A table whose rows are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name; none for the tables' own definitions.
    pub table: Option<String>,
    /// Rows that should not be there as they are.
    pub surplus: u64,
    /// Rows that should be there and are not.
    pub missing: u64,
    /// The key of one of them.
    pub example: String,
}

/// Where `database` is not what the one at `other` is.
pub(super) fn differences(database: &Database, other: &Path) -> Result<Vec<Difference>, StoreError> {
    database.execute("ATTACH DATABASE ?1 AS other", [other.to_string_lossy()])?;
    let definitions = Rows {
        table: "sqlite_schema".to_owned(),
        columns: "type, name, tbl_name, sql".to_owned(),
        key: "name".to_owned(),
    };
    // With other tables or columns there is nothing that rows could be compared by.
    if let Some(difference) = definitions.difference(database)? {
        return Ok(vec![Difference { table: None, ..difference }]);
    }
    let sql = format!("SELECT name FROM {OTHER}.sqlite_schema WHERE type = 'table' ORDER BY name");
    let mut found = Vec::new();
    for table in database.query(&sql, [], |row| row.get::<_, String>(0))? {
        found.extend(Rows::of(database, table)?.difference(database)?);
    }
    Ok(found)
}

/// How the rows of a table are told apart.
struct Rows {
    table: String,
    columns: String,
    key: String,
}

impl Rows {
    fn of(database: &Database, table: String) -> Result<Self, StoreError> {
        let sql = "SELECT name, pk FROM pragma_table_info(?1, ?2) ORDER BY pk, cid";
        let columns = database
            .query(sql, (&table, OTHER), |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?)))?;
        let (keys, all): (Vec<_>, Vec<_>) =
            columns.iter().map(|(name, key)| ((*key > 0).then(|| quoted(name)), quoted(name))).unzip();
        let keys: Vec<String> = keys.into_iter().flatten().collect();
        let key = if keys.is_empty() { "'?'".to_owned() } else { keys.join(" || ' ' || ") };
        Ok(Self { table, columns: all.join(", "), key })
    }

    fn difference(&self, database: &Database) -> Result<Option<Difference>, StoreError> {
        let (surplus, example) = self.only_in(database, "main", OTHER)?;
        let (missing, other_example) = self.only_in(database, OTHER, "main")?;
        let example = example.or(other_example);
        Ok(example.map(|example| Difference { table: Some(self.table.clone()), surplus, missing, example }))
    }

    /// How many rows stand in `one` and not in `other`, and the key of the first.
    fn only_in(
        &self,
        database: &Database,
        one: &str,
        other: &str,
    ) -> Result<(u64, Option<String>), StoreError> {
        let (columns, key, table) = (&self.columns, &self.key, quoted(&self.table));
        let sql = format!(
            "SELECT count(*), min(CAST({key} AS TEXT)) FROM
             (SELECT {columns} FROM {one}.{table} EXCEPT SELECT {columns} FROM {other}.{table})"
        );
        let answer = database.query(&sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
        let (count, example) = answer.into_iter().next().unwrap_or_default();
        Ok((count as u64, if count == 0 { None } else { example }))
    }
}

/// A name as SQL takes it, whatever it is.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
