//! How a projection's keys are cut into segments, and segments shared out among replicas.

use uuid::Uuid;

/// A key's hash: FNV-1a of 32 bits over the UUID's 16 bytes. Written down because it must never change: not between releases, not between
/// replicas, and not from what `projection_hash` computes in SQL.
pub(crate) fn hash(key: Uuid) -> u32 {
    key.as_bytes().iter().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

/// The segment of a key, where there are so many of them: FNV-1a of 32 bits over the UUID's 16 bytes, modulo their number.
pub fn segment_of(key: Uuid, segments: i32) -> i32 {
    let segment = i64::from(hash(key)) % i64::from(segments.max(1));
    i32::try_from(segment).unwrap_or_default()
}

/// How many segments are a replica's share, when `before` of the others that are alive come before it. The shares of all are the segments,
/// and differ by one at the most.
pub(crate) fn share(segments: i32, alive: i64, before: i64) -> usize {
    let (segments, alive) = (i64::from(segments), alive.max(1));
    usize::try_from(segments / alive + i64::from(before < segments % alive)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_segment_never_changes() {
        let of = |key: &str| {
            let key: Uuid = key.parse().unwrap();
            (hash(key), segment_of(key, 8), segment_of(key, 1))
        };
        assert_eq!(of("00000000-0000-0000-0000-000000000000"), (1_768_495_365, 5, 0));
        assert_eq!(of("01890a5d-ac96-774b-bcce-b302099a8057"), (1_827_172_947, 3, 0));
        assert_eq!(of("ffffffff-ffff-ffff-ffff-ffffffffffff"), (906_459_637, 5, 0));
    }

    #[test]
    fn shares_are_the_whole_and_differ_by_one_at_the_most() {
        for segments in 1..=20 {
            for alive in 1..=25 {
                let shares: Vec<_> = (0..alive).map(|before| share(segments, alive, before)).collect();
                assert_eq!(shares.iter().sum::<usize>(), segments as usize);
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            }
        }
    }
}
