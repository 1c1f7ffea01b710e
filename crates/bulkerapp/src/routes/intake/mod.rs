//! What takes data or credentials in.

mod bulk;
mod post;
mod profiles;
mod test;

pub(super) use bulk::bulk;
pub(super) use post::post;
pub(super) use profiles::profiles;
pub(super) use test::test;
