//! The latest events of each destination, for people to look at: written by whoever handles them, read over HTTP.
