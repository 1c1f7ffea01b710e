//! A batch: read and parsed (`reader`, `groups`) within the memory that there is (`memory`), and
//! loaded (`load`), each of its events ending in exactly one place (`decision`).

pub(crate) mod decision;
pub(crate) mod groups;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod poison;
pub(crate) mod reader;
