//! The segments of a projection: how keys map to them, and how replicas share them.

use uuid::Uuid;

/// The number of segments of every projection, and so the largest number of replicas that can share its work.
///
/// Each further segment adds about 3 µs to a batch of one event. The value must never change: the rows of a key belong to its segment.
pub const SEGMENTS: i32 = 16;

/// Hashes a key with FNV-1a of 32 bits over the UUID's 16 bytes. Written out, because it must equal SQL's `key_hash` for ever.
fn key_hash(key: Uuid) -> u32 {
    key.as_bytes().iter().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

/// Returns the segment of a key, from 0 to [`SEGMENTS`] - 1.
pub fn segment_of(key: Uuid) -> i32 {
    let segment = i64::from(key_hash(key)) % i64::from(SEGMENTS);
    i32::try_from(segment).unwrap_or_default()
}

/// Returns how many segments a replica should own if `alive` replicas share them and `before` of the others have a smaller id.
/// All shares add up to the segments and differ by one at most.
pub(crate) fn share(alive: i64, before: i64) -> usize {
    let (segments, alive) = (i64::from(SEGMENTS), alive.max(1));
    usize::try_from(segments / alive + i64::from(before < segments % alive)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_of_a_key_never_changes() {
        let of = |key: &str| {
            let key: Uuid = key.parse().unwrap();
            (key_hash(key), segment_of(key))
        };
        assert_eq!(of("00000000-0000-0000-0000-000000000000"), (1_768_495_365, 5));
        assert_eq!(of("01890a5d-ac96-774b-bcce-b302099a8057"), (1_827_172_947, 3));
        assert_eq!(of("ffffffff-ffff-ffff-ffff-ffffffffffff"), (906_459_637, 5));
    }

    #[test]
    fn shares_add_up_to_the_segments_and_differ_by_one() {
        for alive in 1..=25 {
            let shares: Vec<_> = (0..alive).map(|before| share(alive, before)).collect();
            assert_eq!(shares.iter().sum::<usize>(), SEGMENTS as usize);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }
}
