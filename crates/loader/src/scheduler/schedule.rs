//! When a topic is due: periods that do not pile up at the same second.
//!
//! Times are those of the original, so that two installations with the same configuration load at
//! the same moments: a run starts at a multiple of the period, counted from the year 1, plus a
//! delay that depends on names only.

use kafkabase::fnv1a;

/// Seconds from 0001-01-01 to the Unix epoch.
const YEAR_ONE_TO_UNIX: i64 = 62_135_596_800;
/// A start nearer than this, in seconds, is left to the next period.
const TOO_NEAR: i64 = 5;
/// Without `spreadTablesSchedule`, the tables of one destination are this many seconds apart at
/// most.
const TABLE_SPREAD: i64 = 30;

/// When a topic runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicSchedule {
    /// What the start within the period depends on: the destination's id.
    pub(crate) id: String,
    /// Seconds.
    pub(crate) period: i64,
    /// Spreads the runs over the whole period.
    pub(crate) spread_tables: bool,
}

/// The delay within a period, in seconds.
pub(super) fn delay(topic: &str, destination_id: &str, period: i64, spread_tables: bool) -> i64 {
    let period = period.max(1);
    if spread_tables {
        i64::from(fnv1a(topic)) % period
    } else {
        i64::from(fnv1a(destination_id)) % period + i64::from(fnv1a(topic)) % TABLE_SPREAD
    }
}

/// The first start after `now` (Unix seconds) of a job with this period and delay, in seconds.
pub(super) fn first_start(now: i64, period: i64, delay: i64) -> i64 {
    if period <= 1 {
        return now + period.max(1);
    }
    let since_year_one = now + YEAR_ONE_TO_UNIX;
    let start = since_year_one - since_year_one % period + delay - YEAR_ONE_TO_UNIX;
    if start < now + TOO_NEAR { start + period } else { start }
}

/// The first start after `now` of a job that started at `start` once and comes every `period`
/// seconds. A start more than a period ahead is of a clock that went back since.
pub(super) fn next_start(start: i64, now: i64, period: i64) -> i64 {
    let period = period.max(1);
    now + period - (now - start).rem_euclid(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "in.id.batch_postgres.m.batch.t.events";

    #[test]
    fn the_delay_depends_on_names_only() {
        assert_eq!(delay(TOPIC, "batch_postgres", 300, true), 974_098_857 % 300);
        assert_eq!(
            delay(TOPIC, "batch_postgres", 300, false),
            3_791_846_115 % 300 + 974_098_857 % 30
        );
    }

    #[test]
    fn a_start_lies_on_the_grid_and_not_too_near() {
        // 2026-01-01T00:00:00Z is a multiple of 300 s since the year 1
        let midnight = 1_767_225_600;
        assert_eq!(first_start(midnight, 300, 60), midnight + 60);
        assert_eq!(first_start(midnight + 54, 300, 60), midnight + 60);
        assert_eq!(first_start(midnight + 58, 300, 60), midnight + 360, "less than 5 s ahead");
        assert_eq!(first_start(midnight + 100, 300, 60), midnight + 360);
    }

    #[test]
    fn periods_that_do_not_divide_the_epoch_count_from_the_year_one() {
        let now = 1_767_225_600;
        let start = first_start(now, 7, 0);
        assert_eq!((start + YEAR_ONE_TO_UNIX) % 7, 0);
    }

    #[test]
    fn a_period_of_a_second_starts_one_period_after_now() {
        assert_eq!(first_start(1000, 1, 0), 1001);
        assert_eq!(first_start(1000, 0, 0), 1001);
    }

    #[test]
    fn the_next_start_keeps_the_grid_after_a_long_run() {
        assert_eq!(next_start(100, 99, 30), 100);
        assert_eq!(next_start(100, 100, 30), 130);
        assert_eq!(next_start(100, 195, 30), 220);
    }

    #[test]
    fn the_next_start_is_near_although_the_clock_went_back() {
        assert_eq!(next_start(86_500, 100, 30), 130);
        assert_eq!(next_start(86_500, 99, 30), 100);
    }
}
