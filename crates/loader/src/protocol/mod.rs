//! The protocol, without any I/O: which facts say where a run starts, and in which order they are
//! asked (`facts`), what they decide (`start`), how our commits are told from all others (`mark`),
//! and what a load does with returning events (`returning`). The model beside them searches small
//! worlds for what could go wrong.

pub(crate) mod facts;
pub(crate) mod mark;
#[cfg(test)]
mod model;
pub(crate) mod returning;
pub(crate) mod start;
