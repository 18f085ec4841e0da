//! How long an entry lives.

use std::time::Duration;

/// The life of an entry: the service's default, or its own.
///
/// A TTL of zero means the same on every backend: nothing is stored, and an older value under the key
/// is gone afterwards. A TTL beyond [`Ttl::MAX`] is clamped to it, never wrapped.
///
/// ```
/// use std::time::Duration;
/// use cache_core::Ttl;
///
/// assert_eq!(Ttl::from(None), Ttl::Default);
/// assert_eq!(Ttl::from(Some(300)), Ttl::For(Duration::from_secs(300)));
/// assert_eq!(Ttl::from(Duration::from_millis(5)).resolve(Duration::MAX), Some(Duration::from_millis(5)));
/// assert_eq!(Ttl::from(Some(0)).resolve(Duration::MAX), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ttl {
    /// The default of the service that stores the entry.
    #[default]
    Default,
    /// This long.
    For(Duration),
}

impl Ttl {
    /// The longest life a backend is asked to keep: ten years of 365 days.
    pub const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

    /// The life to give an entry when the service's default is `default`, or `None` when the entry
    /// must not be stored at all. Whole milliseconds, rounded up, so that a short life is not none.
    #[must_use]
    pub fn resolve(self, default: Duration) -> Option<Duration> {
        let life = match self {
            Self::Default => default,
            Self::For(life) => life,
        }
        .min(Self::MAX);
        (!life.is_zero()).then(|| Duration::from_millis(life.as_nanos().div_ceil(1_000_000) as u64))
    }
}

impl From<Option<u64>> for Ttl {
    /// Whole seconds, or the default.
    fn from(seconds: Option<u64>) -> Self {
        seconds.map_or(Self::Default, |seconds| Self::For(Duration::from_secs(seconds)))
    }
}

impl From<Duration> for Ttl {
    fn from(life: Duration) -> Self {
        Self::For(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A3: zero is "do not store", huge is clamped, a sub-millisecond life is not rounded to nothing.
    #[test]
    fn resolves_the_edges() {
        let default = Duration::from_secs(300);
        assert_eq!(Ttl::Default.resolve(default), Some(default));
        assert_eq!(Ttl::For(Duration::ZERO).resolve(default), None);
        assert_eq!(Ttl::For(Duration::MAX).resolve(default), Some(Ttl::MAX));
        assert_eq!(Ttl::from(Some(u64::MAX)).resolve(default), Some(Ttl::MAX));
        assert_eq!(Ttl::For(Duration::from_nanos(1)).resolve(default), Some(Duration::from_millis(1)));
    }
}
