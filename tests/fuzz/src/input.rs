//! An input as a row of small decisions. Where it has ended, every decision is zero.

/// Takes bytes from the front of an input.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// As many bytes as there are, at most `len`.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// A little-endian number of `len` bytes, at most 8.
    pub fn number(&mut self, len: usize) -> u64 {
        let mut raw = [0; 8];
        let taken = self.bytes(len.min(8));
        raw[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(raw)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// A number below `end`, from one byte if that is enough, else from two.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number(if end <= 256 { 1 } else { 2 }) % end.max(1)
    }

    /// 64 bits of a kind that matters: small, one bit, all bits, a run of bits, or any.
    pub fn word(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => u64::from(self.byte()),
            1 => 1 << (self.byte() % 64),
            2 => !0,
            3 => self.number(2),
            4 => self.number(4),
            5 => (1u64 << (self.byte() % 64)).wrapping_sub(1),
            6 => 0u64.wrapping_sub(u64::from(self.byte())),
            _ => self.number(8),
        }
    }

    /// Bytes to put somewhere: 1, 2, 4 or 8 of them.
    pub fn value(&mut self) -> Vec<u8> {
        let len = 1usize << (self.byte() % 4);
        self.word().to_le_bytes()[..len].to_vec()
    }
}
