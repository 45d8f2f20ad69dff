//! The control socket: a QMP server, as written down in `spec/control.md`.
//!
//! Role: lets programs (`qmp-shell`, the `pitstop` command, CI runners) ask and order the running daemon.
//! Way of a request: `listen` makes the socket, `server` accepts, `session` reads bytes, `stream` cuts them into JSON
//! values, `protocol` makes requests of them, `commands` runs them on a [`Target`], `outbox` holds the replies and
//! events until the client takes them. Invariant: no client can block another, a guest, or the end of the daemon, and
//! what is held for a client is bounded. It does not know vhost-user, nor what the daemon's rules are.

mod args;
mod caches;
mod commands;
mod data;
mod hub;
mod jobs;
mod json;
mod listen;
mod outbox;
mod protocol;
mod server;
mod session;
mod stream;
mod target;
mod views;

#[cfg(test)]
#[path = "tests/fake.rs"]
mod fake;
#[cfg(test)]
#[path = "tests/python.rs"]
mod python_tests;

pub(crate) use listen::ListenError;
pub(crate) use server::ControlServer;
pub(crate) use target::Target;
