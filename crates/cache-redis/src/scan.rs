//! Walking the key space.

use redis::cmd;

use crate::connection::RedisLink;
use crate::error::CallError;
use crate::keyspace::{self, BATCH};
use crate::script;

/// Removes every key that starts with `prefix`, and says how many held a value.
///
/// Leases go with the values: a marker is a key like any other, and `SCAN` returns every key that is there from
/// its start to its end. What is no entry of the cache stays, whatever the prefix: locks, limits, presence and the
/// count of the bus. On a pooled connection, so that it never stands in front of a read.
pub(crate) async fn unlink_prefix(link: &RedisLink, prefix: &str) -> Result<u64, CallError> {
    const OPERATION: &str = "invalidate_prefix";
    let pattern = keyspace::starting_with(&link.prefixed(prefix));
    let mut connection = link.pooled(OPERATION).await?;
    let failed = |error| CallError::new(OPERATION, &error, link.settings().response_timeout);
    let (mut cursor, mut removed) = (0_u64, 0_u64);
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
        let (next, mut keys): (u64, Vec<Vec<u8>>) =
            scan.query_async(&mut connection).await.map_err(failed)?;
        let own = &link.settings().key_prefix;
        keys.retain(|key| !keyspace::is_coordination(own, key) && !keyspace::is_of_the_bus(own, key));
        // The server may return more than it was asked for.
        for batch in keys.chunks(BATCH) {
            let unlinked = script::UNLINK_VALUES.with(batch, &[]).run_on(&mut connection).await;
            let unlinked: u64 = unlinked.map_err(failed)?;
            removed += unlinked;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(removed);
        }
    }
}
