//! How many files and sockets the process may have open, and how many of them HTTP may use.
//!
//! Invariant: HTTP never gets so many that none are left for the disk, the database and Kafka.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, info, warn};

/// Descriptors that are kept for everything but HTTP, where there are so many: sockets to brokers
/// and databases, files of a spool, what a runtime needs.
const FOR_OTHERS: u64 = 1_024;

/// Raises the number of descriptors that the process may have (`ulimit -n`) to what the system
/// lets it have, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(error = %error, "number of open files that are allowed is not known");
            return FOR_OTHERS;
        }
    };
    if soft >= hard {
        debug!(limit = soft, "number of open files that are allowed");
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => {
            info!(before = soft, limit = hard, "number of open files that are allowed was raised");
            hard
        }
        Err(error) => {
            warn!(error = %error, limit = soft, "number of open files cannot be raised");
            soft
        }
    }
}

/// How many connections fit beside everything else where `limit` descriptors are allowed: two
/// thirds of them are the others', up to a number that is enough. A warning where these are fewer
/// than `wanted`.
pub fn connections_within(limit: u64, wanted: u32) -> u32 {
    let fit = u32::try_from(limit - FOR_OTHERS.min(2 * (limit / 3))).unwrap_or(u32::MAX);
    if fit >= wanted {
        return wanted;
    }
    warn!(
        wanted,
        connections = fit,
        open_files = limit,
        "fewer connections are served than HTTP_MAX_CONNECTIONS; raise the limit of open files"
    );
    fit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let cases = [
            (1 << 20, 10_000, 10_000),
            (11_024, 10_000, 10_000),
            (4_096, 10_000, 3_072),
            (1_024, 10_000, 342),
            (256, 10_000, 86),
            (256, 20, 20),
            (1, 20, 1),
        ];
        for (limit, wanted, connections) in cases {
            assert_eq!(connections_within(limit, wanted), connections, "{limit} {wanted}");
        }
    }

    #[test]
    fn the_limit_is_what_the_system_lets_the_process_have() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise_descriptor_limit(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
