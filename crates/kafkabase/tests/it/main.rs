//! kafkabase against real brokers that go away and come back.

mod admin;
mod fetcher;
mod message;
mod range;
mod settings;
mod transaction;
