//! One client: reads requests, runs them one after the other, writes replies and events.
//!
//! Invariant: a message is written whole before the next, so no event is ever inside a reply (CTL-24); replies come
//! in the order of their requests (CTL-9). Two threads a client: the reader runs the commands, the writer empties the
//! outbox, so that a client that does not read holds up nobody else.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::commands::{self, Context, Done};
use super::hub::Hub;
use super::outbox::{Closed, Outbox};
use super::protocol::{self, Failure};
use super::stream::{Piece, REQUEST_LIMIT_BYTES, Splitter};

/// A client that takes no byte for so long while messages wait is dropped (CTL-25).
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes asked of the socket at once.
const READ_LEN_BYTES: usize = 16 << 10;

/// The part of a session that other threads may use.
#[derive(Debug)]
pub(super) struct Link {
    number: u64,
    stream: UnixStream,
    outbox: Outbox,
}

impl Link {
    /// The link of an accepted connection; `number` names it in the log.
    pub(super) fn new(number: u64, stream: UnixStream) -> Self {
        Self { number, stream, outbox: Outbox::new() }
    }

    /// Names the session in the log.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What waits for the client.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Tells a client that it will not be served, as far as it listens: never blocks.
    pub(super) fn refuse(&self, failure: Failure) {
        let message = protocol::reply(None, Err(failure));
        // A fresh socket has room for one line.
        let told = self.stream.set_nonblocking(true).and_then(|()| (&self.stream).write_all(&message));
        if let Err(error) = told {
            log::debug!("control client {} did not hear its refusal: {error}", self.number);
        }
    }

    /// Reads no more requests and sends no more than what waits.
    pub(super) fn finish(&self) {
        self.outbox.drain();
        self.shut_down(Shutdown::Read);
    }

    /// Ends the connection at once.
    pub(super) fn give_up(&self) {
        self.outbox.abort();
        self.shut_down(Shutdown::Both);
    }

    fn shut_down(&self, how: Shutdown) {
        if let Err(error) = self.stream.shutdown(how) {
            log::debug!("control client {} has already gone: {error}", self.number);
        }
    }
}

/// Starts the session's threads; they end with the connection and then take the session out of the hub.
pub(super) fn spawn(link: Arc<Link>, context: Arc<Context>, hub: Arc<Hub>) -> io::Result<()> {
    let membership = Membership { link: Arc::clone(&link), hub }; // first: every failure below must take it out again
    link.stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let writer_link = Arc::clone(&link);
    let writer = thread::Builder::new().name(format!("qmp-{}-out", link.number)).spawn(move || write(&writer_link));
    let writer = writer?;
    thread::Builder::new().name(format!("qmp-{}", link.number)).spawn(move || {
        let membership = membership;
        log::debug!("control client {} connected", link.number);
        Reader { link: &link, context: &context, negotiated: false }.run();
        link.outbox.drain();
        if writer.join().is_err() {
            log::error!("the writer of control client {} panicked", link.number);
        }
        log::debug!("control client {} left", link.number);
        drop(membership);
    })?;
    Ok(())
}

/// Takes the session out of the hub and ends its writer, also when the reader panics or never started.
struct Membership {
    link: Arc<Link>,
    hub: Arc<Hub>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.link.give_up();
        self.hub.remove(&self.link);
    }
}

fn write(link: &Link) {
    while let Some(message) = link.outbox.pop() {
        if let Err(error) = (&link.stream).write_all(&message) {
            let why = if error.kind() == io::ErrorKind::WouldBlock { "it does not read" } else { "it has gone" };
            log::debug!("dropping control client {}: {why} ({error})", link.number);
            link.give_up();
            return;
        }
        link.outbox.written(&message);
    }
}

/// The reading half.
struct Reader<'a> {
    link: &'a Link,
    context: &'a Context,
    negotiated: bool,
}

/// Why reading stops.
struct End;

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        End
    }
}

impl Reader<'_> {
    fn run(mut self) {
        if self.link.outbox.push_reply(protocol::greeting()).is_err() {
            return;
        }
        let mut splitter = Splitter::new();
        let mut chunk = vec![0; READ_LEN_BYTES];
        loop {
            let len = match (&self.link.stream).read(&mut chunk) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::debug!("reading from control client {} failed: {error}", self.link.number);
                    return;
                }
            };
            let mut input = chunk.get(..len).unwrap_or_default();
            while let Some(piece) = splitter.next(&mut input) {
                if self.answer(piece).is_err() {
                    return;
                }
            }
        }
    }

    fn answer(&mut self, piece: Piece) -> Result<(), End> {
        match piece {
            Piece::Value(text) => self.request(&text),
            Piece::Malformed(why) => self.reply(None, Err(protocol::malformed(why))),
            Piece::TooLong => {
                let desc = format!("request is longer than {REQUEST_LIMIT_BYTES} bytes; the connection is closed");
                self.reply(None, Err(Failure::generic(desc)))?;
                Err(End)
            }
        }
    }

    fn request(&mut self, text: &[u8]) -> Result<(), End> {
        let parsed = protocol::parse_request(text);
        let request = match parsed.request {
            Ok(request) => request,
            Err(failure) => return self.reply(parsed.id, Err(failure)),
        };
        if !self.negotiated {
            return match commands::negotiate(request) {
                Ok(()) => {
                    self.negotiated = true;
                    Ok(self.link.outbox.push_negotiated(protocol::reply(parsed.id, Ok(json!({}))))?)
                }
                Err(failure) => self.reply(parsed.id, Err(failure)),
            };
        }
        log::debug!("control client {}: {}", self.link.number, request.command);
        match self.context.run(request) {
            Ok(Done::Return(value)) => self.reply(parsed.id, Ok(value)),
            Ok(Done::Quit) => {
                let replied = self.reply(parsed.id, Ok(json!({})));
                self.context.quit();
                replied
            }
            Err(failure) => self.reply(parsed.id, Err(failure)),
        }
    }

    fn reply(&self, id: Option<Value>, result: Result<Value, Failure>) -> Result<(), End> {
        Ok(self.link.outbox.push_reply(protocol::reply(id, result))?)
    }
}
