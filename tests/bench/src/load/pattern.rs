//! Which block comes next.

use super::Pattern;

/// Pseudo-random numbers (xorshift*): the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Puts `items` into random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n as u64 + 1) as usize);
        }
    }

    /// Random bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A series of places on the disk.
pub(crate) struct Places {
    offset: u64,
    blocks: u64,
    block_len: u64,
    order: Order,
}

enum Order {
    Random,
    Sequential {
        next: u64,
    },
    /// What is left, last first.
    Once(Vec<u32>),
}

impl Places {
    /// Places of `blocks` blocks of `block_len` bytes from `offset` on.
    pub(crate) fn new(pattern: Pattern, offset: u64, blocks: u64, block_len: u64, random: &mut Random) -> Self {
        let order = match pattern {
            Pattern::Random => Order::Random,
            Pattern::Sequential => Order::Sequential { next: 0 },
            Pattern::Once => {
                let mut all: Vec<u32> = (0..blocks as u32).collect();
                random.shuffle(&mut all);
                Order::Once(all)
            }
        };
        Places { offset, blocks, block_len, order }
    }

    /// The offset of the next block in bytes; `None` when there is no other.
    pub(crate) fn next(&mut self, random: &mut Random) -> Option<u64> {
        let block = match &mut self.order {
            Order::Random => random.below(self.blocks),
            Order::Sequential { next } => {
                *next += 1;
                (*next - 1) % self.blocks
            }
            Order::Once(left) => u64::from(left.pop()?),
        };
        Some(self.offset + block * self.block_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_uses_each_block_once() {
        let mut random = Random::new(5);
        let mut places = Places::new(Pattern::Once, 8192, 100, 4096, &mut random);
        let mut all: Vec<u64> = std::iter::from_fn(|| places.next(&mut random)).collect();
        assert_ne!(all[..3], [8192, 12288, 16384]);
        all.sort_unstable();
        assert_eq!(all, (0..100).map(|n| 8192 + n * 4096).collect::<Vec<_>>());
    }

    #[test]
    fn sequential_begins_anew_at_the_end() {
        let mut random = Random::new(5);
        let mut places = Places::new(Pattern::Sequential, 0, 3, 512, &mut random);
        let all: Vec<_> = (0..4).map(|_| places.next(&mut random)).collect();
        assert_eq!(all, [Some(0), Some(512), Some(1024), Some(0)]);
    }
}
