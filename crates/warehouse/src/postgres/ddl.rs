//! SQL text that makes and changes tables. Pure functions: what goes in is quoted here.

use uuid::Uuid;

use super::{
    catalog::{Key, TableName},
    quote_ident, quote_literal, types,
};
use crate::rows::sql_type::without_rewrite;

/// Bytes of a table's name in the name of its staging table, which has 20 more and must not be cut.
const STAGING_NAME: usize = 43;
/// Constraints whose name starts so are ours to change.
pub(super) const MANAGED_KEY_PREFIX: &str = "jitsu_pk_";

/// A column to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewColumn {
    pub(super) name: String,
    /// The type as it is declared; may carry a default clause.
    pub(super) ddl_type: String,
}

/// What has to happen to the key of a table that is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyChange {
    Nothing,
    /// A managed key goes; the stream has none.
    Drop(String),
    /// The stream's key comes, and a managed one of other columns goes.
    Set {
        instead_of: Option<String>,
    },
}

pub(super) fn key_change(name: &TableName, present: Option<&Key>, wanted: &[String]) -> KeyChange {
    match present {
        None if wanted.is_empty() => KeyChange::Nothing,
        None => KeyChange::Set { instead_of: None },
        Some(key) if key.columns == wanted || !is_managed(name, key) => KeyChange::Nothing,
        Some(key) if wanted.is_empty() => KeyChange::Drop(key.constraint.clone()),
        Some(key) => KeyChange::Set { instead_of: Some(key.constraint.clone()) },
    }
}

pub(super) fn drop_constraint_sql(name: &TableName, constraint: &str) -> String {
    format!("alter table {} drop constraint {}", name.quoted(), quote_ident(constraint))
}

/// The statements that make a table, with its key and the index of its timestamp column.
pub(super) fn create_sql(
    name: &TableName,
    columns: &[NewColumn],
    key: &[String],
    indexed: Option<&str>,
) -> Vec<String> {
    let mut statements = vec![create_table_sql(name, columns, key)];
    if !key.is_empty() {
        statements.push(add_key_sql(name, key));
    }
    if let Some(column) = indexed {
        statements.push(format!("create index on {} ({})", name.quoted(), quote_ident(column)));
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
    let columns: Vec<_> = columns.iter().map(|column| definition(column, key)).collect();
    format!("create table {} ({})", name.quoted(), columns.join(", "))
}

/// A column of `key` of a new table has a default.
fn definition(column: &NewColumn, key: &[String]) -> String {
    let NewColumn { name, ddl_type } = column;
    let default = match key.contains(name) {
        true => format!(" not null default {}", types::key_default(ddl_type)),
        false => String::new(),
    };
    format!("{} {ddl_type}{default}", quote_ident(name))
}

/// All new columns in one statement: one short lock instead of one per column. `key` is that of a
/// table that is being made.
///
/// What differs from row to row would make the server write the whole table anew, under its lock: a
/// default of that kind holds for later rows only, and a sequence is left out.
pub(super) fn add_columns_sql(name: &TableName, columns: &[NewColumn], key: &[String]) -> String {
    let mut additions = Vec::with_capacity(columns.len());
    for column in columns {
        let (ddl_type, default) = without_rewrite(&column.ddl_type);
        let added = NewColumn { name: column.name.clone(), ddl_type };
        additions.push(format!("add column if not exists {}", definition(&added, key)));
        if let Some(default) = default {
            let column = quote_ident(&column.name);
            additions.push(format!("alter column {column} set default {default}"));
        }
    }
    format!("alter table {} {}", name.quoted(), additions.join(", "))
}

/// The name of a key that we make and may change later.
pub(super) fn key_name() -> String {
    format!("{MANAGED_KEY_PREFIX}{}", Uuid::new_v4().simple())
}

pub(super) fn add_key_sql(name: &TableName, key: &[String]) -> String {
    format!(
        "alter table {} add constraint {} primary key ({})",
        name.quoted(),
        quote_ident(&key_name()),
        quoted_list(key)
    )
}

pub(super) fn quoted_list(columns: &[String]) -> String {
    let columns: Vec<_> = columns.iter().map(|column| quote_ident(column)).collect();
    columns.join(", ")
}

/// One owner per table at a time, for as long as the transaction lasts.
pub(super) fn lock_table_sql(name: &TableName) -> String {
    format!(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({}, 0))",
        quote_literal(&name.quoted())
    )
}

/// A table that rows pass through on their way into another one.
#[derive(Debug, Clone)]
pub(super) struct Staging {
    name: String,
    /// `None`: a temporary table.
    schema: Option<String>,
}

impl Staging {
    pub(super) fn new(target: &TableName, is_temporary: bool) -> Staging {
        let mut end = STAGING_NAME.min(target.table.len());
        while !target.table.is_char_boundary(end) {
            end -= 1;
        }
        let start = &target.table[..end];
        // 16 digits, as many as the original's milliseconds and random number have
        let digits = Uuid::new_v4().as_u128() % 10_000_000_000_000_000;
        let schema = (!is_temporary).then(|| target.schema.clone());
        Staging { name: format!("{start}_tmp{digits:016}"), schema }
    }

    /// Qualified and quoted.
    pub(super) fn quoted(&self) -> String {
        let schema = self.schema.as_deref().map_or_else(|| "pg_temp".to_owned(), quote_ident);
        format!("{schema}.{}", quote_ident(&self.name))
    }

    /// Makes it with the columns that a batch brings to `target`, in their types. Without
    /// constraints: they are the target's to check.
    pub(super) fn create_like_sql(&self, target: &TableName, columns: &[String]) -> String {
        let end = if self.schema.is_none() { " on commit drop" } else { "" };
        format!(
            "create {} {}{end} as select {} from {} with no data",
            self.kind(),
            self.quoted(),
            columns.join(", "),
            target.quoted()
        )
    }

    /// Makes it with columns of its own.
    pub(super) fn create_sql(&self, columns: &[NewColumn]) -> String {
        let columns: Vec<_> = columns
            .iter()
            .map(|column| format!("{} {}", quote_ident(&column.name), column.ddl_type))
            .collect();
        let end = if self.schema.is_none() { " on commit drop" } else { "" };
        format!("create {} {} ({}){end}", self.kind(), self.quoted(), columns.join(", "))
    }

    fn kind(&self) -> &'static str {
        if self.schema.is_none() { "temporary table" } else { "table" }
    }
}

/// Removes the rows of one partition. Its text becomes a value of the column's type.
pub(super) fn delete_partition_sql(name: &TableName, column: &str, partition: &str) -> String {
    format!(
        "delete from {} where {} = {}",
        name.quoted(),
        quote_ident(column),
        quote_literal(partition)
    )
}

/// A statement that puts rows into a table, but for the rows.
pub(super) struct Insertion<'a> {
    pub(super) target: &'a TableName,
    /// Quoted, in the order of the rows' values.
    pub(super) columns: &'a [String],
    /// Those of them whose identity is always the table's own, unless that is overridden.
    pub(super) always_own: &'a [String],
    /// The constraint of the key that rows are merged by.
    pub(super) merged_by: Option<&'a str>,
}

impl Insertion<'_> {
    /// `rows` is what follows the names of the columns: `values (…)` or a query.
    pub(super) fn sql(&self, rows: &str) -> String {
        let Insertion { target, columns, always_own, merged_by } = self;
        let target = target.quoted();
        if columns.is_empty() {
            return format!("insert into {target} default values");
        }
        // as COPY does
        let overriding = if always_own.is_empty() { "" } else { " overriding system value" };
        let conflict = merged_by.map_or_else(String::new, |constraint| {
            // what is always the table's own can be set once and not changed
            let updated = columns.iter().filter(|column| !always_own.contains(column));
            let updates: Vec<_> =
                updated.map(|column| format!("{column} = excluded.{column}")).collect();
            let then = match updates.is_empty() {
                true => "nothing".to_owned(),
                false => format!("update set {}", updates.join(", ")),
            };
            format!(" on conflict on constraint {} do {then}", quote_ident(constraint))
        });
        format!("insert into {target} ({}){overriding} {rows}{conflict}", columns.join(", "))
    }
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
        Key {
            constraint: constraint.to_owned(),
            columns: vec!["id".to_owned()],
            is_deferrable: false,
        }
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
            add_columns_sql(&name(), &[column("a", "text"), column("b", "bigint")], &[]),
            r#"alter table "s"."t" add column if not exists "a" text, add column if not exists "b" bigint"#
        );
    }

    #[test]
    fn a_default_that_differs_from_row_to_row_is_set_after_the_column() {
        let sql = |ddl_type: &str| add_columns_sql(&name(), &[column("a", ddl_type)], &[]);
        assert_eq!(
            sql("uuid NOT NULL default gen_random_uuid()"),
            r#"alter table "s"."t" add column if not exists "a" uuid NOT NULL, alter column "a" set default gen_random_uuid()"#
        );
        assert_eq!(sql("bigserial"), r#"alter table "s"."t" add column if not exists "a" bigint"#);
        let constant = "bigint default 5 not null";
        assert!(sql(constant).ends_with(constant));
    }

    #[test]
    fn only_managed_keys_are_changed() {
        let wanted = ["other".to_owned()];
        let change =
            |present: Option<&Key>, wanted: &[String]| key_change(&name(), present, wanted);
        assert_eq!(change(Some(&key("custom")), &wanted), KeyChange::Nothing);
        assert_eq!(change(Some(&key("custom")), &[]), KeyChange::Nothing);
        assert_eq!(change(Some(&key("jitsu_pk_1")), &["id".to_owned()]), KeyChange::Nothing);
        assert_eq!(change(Some(&key("jitsu_pk_1")), &[]), KeyChange::Drop("jitsu_pk_1".to_owned()));
        let instead_of = Some("JITSU_PK_1".to_owned());
        assert_eq!(change(Some(&key("JITSU_PK_1")), &wanted), KeyChange::Set { instead_of });
        assert_eq!(change(None, &wanted), KeyChange::Set { instead_of: None });
    }

    #[test]
    fn the_key_of_the_originals_predecessor_is_managed() {
        let mut present = key("S_T_PK");
        assert_eq!(key_change(&name(), Some(&present), &[]), KeyChange::Nothing, "another column");
        present.columns = vec!["eventn_ctx_event_id".to_owned()];
        assert_eq!(key_change(&name(), Some(&present), &[]), KeyChange::Drop("S_T_PK".to_owned()));
    }

    #[test]
    fn a_staging_table_has_a_name_that_is_not_cut() {
        for letter in ["t", "é", "表", "😀"] {
            let table = letter.repeat(63 / letter.len());
            let staging = Staging::new(&TableName { schema: "s".to_owned(), table }, false);
            assert!(staging.name.len() <= 63, "{}", staging.name);
        }
    }

    #[test]
    fn an_identity_is_set_by_its_first_row_and_not_changed_by_the_next() {
        let target = name();
        let (id, name) = ("\"id\"".to_owned(), "\"name\"".to_owned());
        let insertion = |columns: &[String]| {
            let always_own = [id.clone()];
            Insertion { target: &target, columns, always_own: &always_own, merged_by: Some("k") }
                .sql("values (…)")
        };
        let start = r#"insert into "s"."t" ("id""#;
        let rest = r#" overriding system value values (…) on conflict on constraint "k" do"#;
        assert_eq!(
            insertion(&[id.clone(), name]),
            format!(r#"{start}, "name"){rest} update set "name" = excluded."name""#)
        );
        assert_eq!(insertion(std::slice::from_ref(&id)), format!("{start}){rest} nothing"));
    }

    #[test]
    fn a_staging_table_carries_the_start_of_the_name() {
        let target = TableName { schema: "s".to_owned(), table: "t".repeat(60) };
        let staging = Staging::new(&target, false);
        assert!(staging.quoted().starts_with(&format!("\"s\".\"{}_tmp", "t".repeat(43))));
        assert!(Staging::new(&target, true).quoted().starts_with("pg_temp."));
    }
}
