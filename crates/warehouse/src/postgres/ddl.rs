//! SQL text that makes and changes tables. Pure functions: what goes in is quoted here.

use uuid::Uuid;

use super::{
    quote_ident, quote_literal,
    table::{Key, Table, TableName},
    types,
};

/// Constraints whose name starts so are ours to change.
const MANAGED_KEY_PREFIX: &str = "jitsu_pk_";

/// A column to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewColumn {
    pub(crate) name: String,
    /// The type as it is declared; may carry a default clause.
    pub(crate) ddl_type: String,
}

/// What a table lacks. Empty: nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) statements: Vec<String>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

/// The statements that bring the table (`None`: it is not there) to what a load needs.
pub(crate) fn changes(
    name: &TableName,
    table: Option<&Table>,
    missing: &[NewColumn],
    key: &[String],
    timestamp_column: Option<&str>,
) -> Changes {
    let mut statements = Vec::new();
    match table {
        None => {
            statements.push(create_table_sql(name, missing, key));
            if !key.is_empty() {
                statements.push(add_key_sql(name, key));
            }
            if let Some(column) = timestamp_column {
                let column = quote_ident(column);
                statements.push(format!("create index on {} ({column})", name.quoted()));
            }
        }
        Some(table) => {
            if !missing.is_empty() {
                statements.push(add_columns_sql(name, missing));
            }
            statements.extend(key_changes(name, table.key.as_ref(), key));
        }
    }
    Changes { statements }
}

fn key_changes(name: &TableName, present: Option<&Key>, wanted: &[String]) -> Vec<String> {
    let Some(present) = present else {
        return if wanted.is_empty() { Vec::new() } else { vec![add_key_sql(name, wanted)] };
    };
    if present.columns == wanted || !is_managed(name, present) {
        return Vec::new();
    }
    let mut statements = vec![format!(
        "alter table {} drop constraint {}",
        name.quoted(),
        quote_ident(&present.constraint)
    )];
    if !wanted.is_empty() {
        statements.push(add_key_sql(name, wanted));
    }
    statements
}

/// Whether a key was made by us, or by the original's predecessor.
fn is_managed(name: &TableName, key: &Key) -> bool {
    let constraint = key.constraint.to_lowercase();
    constraint.starts_with(MANAGED_KEY_PREFIX)
        || (constraint == format!("{}_{}_pk", name.schema, name.table).to_lowercase()
            && key.columns == ["eventn_ctx_event_id"])
}

fn create_table_sql(name: &TableName, columns: &[NewColumn], key: &[String]) -> String {
    let columns: Vec<_> = columns
        .iter()
        .map(|column| {
            let NewColumn { name, ddl_type } = column;
            let default = if key.contains(name) {
                format!(" not null default {}", types::key_default(ddl_type))
            } else {
                String::new()
            };
            format!("{} {ddl_type}{default}", quote_ident(name))
        })
        .collect();
    format!("create table {} ({})", name.quoted(), columns.join(", "))
}

/// All new columns in one statement: one short lock instead of one per column.
fn add_columns_sql(name: &TableName, columns: &[NewColumn]) -> String {
    let additions: Vec<_> = columns
        .iter()
        .map(|column| {
            format!("add column if not exists {} {}", quote_ident(&column.name), column.ddl_type)
        })
        .collect();
    format!("alter table {} {}", name.quoted(), additions.join(", "))
}

fn add_key_sql(name: &TableName, key: &[String]) -> String {
    let constraint = format!("{MANAGED_KEY_PREFIX}{}", Uuid::new_v4().simple());
    let columns: Vec<_> = key.iter().map(|column| quote_ident(column)).collect();
    format!(
        "alter table {} add constraint {} primary key ({})",
        name.quoted(),
        quote_ident(&constraint),
        columns.join(", ")
    )
}

/// One owner per table at a time, for as long as the transaction lasts.
pub(crate) fn lock_table_sql(name: &TableName) -> String {
    format!(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({}, 0))",
        quote_literal(&name.quoted())
    )
}

/// A temporary table like the columns that a batch brings. Without constraints: they are the target's to check.
pub(crate) fn staging_sql(
    staging: &str,
    target: &TableName,
    columns: &[String],
    temporary: bool,
) -> String {
    let (kind, place, end) = if temporary {
        ("temporary table", quote_ident(staging), " on commit drop")
    } else {
        ("table", format!("{}.{}", quote_ident(&target.schema), quote_ident(staging)), "")
    };
    format!(
        "create {kind} {place}{end} as select {} from {} with no data",
        columns.join(", "),
        target.quoted()
    )
}

/// Moves the staging table's rows into the target; `selected` are the expressions for `columns`.
pub(crate) fn merge_sql(
    staging: &str,
    target: &TableName,
    columns: &[String],
    selected: &[String],
    key_constraint: Option<&str>,
) -> String {
    let (names, selected) = (columns.join(", "), selected.join(", "));
    let conflict = key_constraint.map_or_else(String::new, |constraint| {
        let updates: Vec<_> =
            columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        format!(
            " on conflict on constraint {} do update set {}",
            quote_ident(constraint),
            updates.join(", ")
        )
    });
    format!("insert into {} ({names}) select {selected} from {staging}{conflict}", target.quoted())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> TableName {
        TableName { schema: "s".to_owned(), table: "t".to_owned() }
    }

    fn column(name: &str, ddl_type: &str) -> NewColumn {
        NewColumn { name: name.to_owned(), ddl_type: ddl_type.to_owned() }
    }

    fn key(constraint: &str) -> Key {
        Key { constraint: constraint.to_owned(), columns: vec!["id".to_owned()] }
    }

    #[test]
    fn key_columns_of_a_new_table_have_a_default() {
        let sql = create_table_sql(
            &name(),
            &[column("id", "bigint"), column("v", "text")],
            &["id".to_owned()],
        );
        assert_eq!(sql, r#"create table "s"."t" ("id" bigint not null default 0, "v" text)"#);
    }

    #[test]
    fn all_missing_columns_are_added_in_one_statement() {
        assert_eq!(
            add_columns_sql(&name(), &[column("a", "text"), column("b", "bigint")]),
            r#"alter table "s"."t" add column if not exists "a" text, add column if not exists "b" bigint"#
        );
    }

    #[test]
    fn only_managed_keys_are_changed() {
        let wanted = ["other".to_owned()];
        assert!(key_changes(&name(), Some(&key("custom")), &wanted).is_empty());
        assert_eq!(key_changes(&name(), Some(&key("JITSU_PK_1")), &wanted).len(), 2);
        assert_eq!(key_changes(&name(), Some(&key("jitsu_pk_1")), &[]).len(), 1, "dropped");
        assert!(key_changes(&name(), Some(&key("jitsu_pk_1")), &["id".to_owned()]).is_empty());
    }
}
