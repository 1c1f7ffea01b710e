//! PostgreSQL: the table as it is (`catalog`, `in_the_way`), how a batch fits it (`fit`, `prepared`),
//! what has to change (`ddl`, `change`, `new_table`, `key` and its `key_…`), which columns cannot be
//! had (`column_search`, `barred`), what rows become for COPY (`encode`, `binary`) and how they
//! reach the table (`transfer`, one by one: `one_by_one`, `insert`), which rows are refused
//! (`isolate`), the transaction that carries all of it (`load`, `attempt`), and what is kept beside
//! it (`ledger`).

mod attempt;
mod barred;
mod binary;
mod catalog;
mod change;
mod client;
mod column_search;
mod credentials;
mod ddl;
mod encode;
mod error;
mod fit;
mod fit_column;
mod in_the_way;
mod insert;
mod isolate;
mod key;
mod key_leftovers;
mod key_of_parts;
mod known;
mod ledger;
mod load;
mod new_keys;
mod new_table;
mod number;
mod one_by_one;
mod parameters;
mod patience;
mod pool;
mod prepared;
mod quote;
mod row_writer;
mod selection;
mod transfer;
mod types;

pub(crate) use catalog::Table;
pub use credentials::Credentials;
pub use ledger::Ledger;
pub(crate) use ledger::{read_all, rights};
pub use load::Staged;
pub use pool::{Postgres, Settings, probe};
pub use quote::{quote_ident, quote_literal};
pub use transfer::copy_text;
