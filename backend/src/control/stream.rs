//! Cuts a byte stream into JSON values.
//!
//! Role: find where each value ends, so that a client may send objects without line ends, several at once or in
//! pieces (CTL-10); turn QMP's string extensions (single quotes, `\'`) into plain JSON (CTL-12); after bytes that
//! cannot be JSON, find a place to go on (CTL-13, CTL-14). Invariant: every byte is looked at once, and a value of more
//! than [`REQUEST_LIMIT_BYTES`] is not kept. It does not decide whether a value is correct JSON: `json` does.

/// Longest request in bytes (CTL-15).
pub(super) const REQUEST_LIMIT_BYTES: usize = 1 << 20;
/// Deepest nesting of a request (CTL-15).
pub(super) const NESTING_LIMIT: usize = 100;

/// What was found in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The bytes of one value: balanced, otherwise unchecked.
    Value(Vec<u8>),
    /// Bytes that cannot belong to a value; reading goes on behind them.
    Malformed(&'static str),
    /// A value longer than the limit; nothing more is read.
    TooLong,
}

/// The cutter; one a connection.
#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    value: Vec<u8>,
    /// The brackets that are still to come, innermost last.
    closers: Vec<u8>,
    /// Bytes of the present value, as they arrived.
    taken: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between values.
    Idle,
    /// In a value that is neither string, object nor array.
    Literal,
    /// In an object or array, outside strings.
    Nested,
    /// In a string.
    Text { quote: u8, escaped: bool },
    /// Behind malformed bytes: skips up to a line end or the next object.
    Recovering,
    /// A value was too long.
    Dead,
}

impl Splitter {
    /// A cutter that has seen nothing.
    pub(super) fn new() -> Self {
        Self { state: State::Idle, value: Vec::new(), closers: Vec::new(), taken: 0 }
    }

    /// Takes bytes from the front of `input` until a piece is complete; `None` when more input is needed.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Option<Piece> {
        while let Some((&byte, rest)) = input.split_first() {
            if self.state == State::Literal && ends_literal(byte) {
                return Some(self.finish()); // the byte belongs to what follows
            }
            *input = rest;
            match self.state {
                State::Idle | State::Recovering => self.taken = 1,
                State::Dead => continue,
                State::Literal | State::Nested | State::Text { .. } => self.taken += 1,
            }
            if self.taken > REQUEST_LIMIT_BYTES {
                self.reset(State::Dead);
                self.value = Vec::new();
                return Some(Piece::TooLong);
            }
            if let Some(piece) = self.step(byte) {
                return Some(piece);
            }
        }
        None
    }

    fn step(&mut self, byte: u8) -> Option<Piece> {
        if resets(byte) {
            self.reset(State::Idle);
            return Some(Piece::Malformed("stray control character or byte that is not UTF-8"));
        }
        match self.state {
            State::Idle => self.begin(byte),
            State::Literal => {
                self.value.push(byte);
                None
            }
            State::Nested => self.nested(byte),
            State::Text { quote, escaped } => self.text(byte, quote, escaped),
            State::Recovering => match byte {
                b'\n' => {
                    self.state = State::Idle;
                    None
                }
                b'{' => self.begin(byte),
                _ => None,
            },
            State::Dead => None,
        }
    }

    fn begin(&mut self, byte: u8) -> Option<Piece> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => None,
            b'}' | b']' | b',' | b':' => self.malformed("expecting value"),
            b'{' | b'[' => self.nested(byte),
            b'"' | b'\'' => self.open_text(byte),
            _ => {
                self.value.push(byte);
                self.state = State::Literal;
                None
            }
        }
    }

    fn nested(&mut self, byte: u8) -> Option<Piece> {
        self.state = State::Nested;
        match byte {
            b'{' | b'[' => {
                if self.closers.len() == NESTING_LIMIT {
                    return self.malformed("nesting depth limit exceeded");
                }
                self.closers.push(if byte == b'{' { b'}' } else { b']' });
            }
            b'}' | b']' => {
                let expected = self.closers.pop();
                if expected != Some(byte) {
                    return self.malformed("mismatched bracket");
                }
            }
            b'"' | b'\'' => return self.open_text(byte),
            _ => {}
        }
        self.value.push(byte);
        self.closers.is_empty().then(|| self.finish())
    }

    fn open_text(&mut self, quote: u8) -> Option<Piece> {
        self.value.push(b'"');
        self.state = State::Text { quote, escaped: false };
        None
    }

    fn text(&mut self, byte: u8, quote: u8, escaped: bool) -> Option<Piece> {
        if byte < b' ' {
            let piece = self.malformed("control character in a string");
            if byte == b'\n' {
                self.state = State::Idle;
            }
            return piece;
        }
        match byte {
            _ if escaped => {
                if byte != b'\'' {
                    self.value.push(b'\\');
                }
                self.value.push(byte);
            }
            b'\\' => {}
            _ if byte == quote => {
                self.value.push(b'"');
                if self.closers.is_empty() {
                    return Some(self.finish());
                }
                self.state = State::Nested;
                return None;
            }
            b'"' => self.value.extend_from_slice(b"\\\""), // in single quotes
            _ => self.value.push(byte),
        }
        self.state = State::Text { quote, escaped: !escaped && byte == b'\\' };
        None
    }

    fn finish(&mut self) -> Piece {
        self.state = State::Idle;
        Piece::Value(std::mem::take(&mut self.value))
    }

    fn malformed(&mut self, why: &'static str) -> Option<Piece> {
        self.reset(State::Recovering);
        Some(Piece::Malformed(why))
    }

    fn reset(&mut self, state: State) {
        self.state = state;
        self.value.clear();
        self.closers.clear();
    }
}

/// Bytes that cannot occur in JSON text and bring the parser to a known state (CTL-14).
fn resets(byte: u8) -> bool {
    match byte {
        b'\t' | b'\r' | b'\n' => false,
        0..=0x1f | 0xc0 | 0xc1 | 0xf5..=0xff => true,
        _ => false,
    }
}

fn ends_literal(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'{' | b'}' | b'[' | b']' | b',' | b':' | b'"' | b'\'')
}

#[cfg(test)]
#[path = "tests/stream.rs"]
mod tests;
