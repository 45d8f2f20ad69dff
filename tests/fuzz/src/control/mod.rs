//! The control socket, module by module, with a client beside them that may see what they keep to themselves.

#[path = "../../../../backend/src/control/args.rs"]
mod args;
#[path = "../../../../backend/src/control/caches.rs"]
mod caches;
#[path = "../../../../backend/src/control/commands.rs"]
mod commands;
#[path = "../../../../backend/src/control/data.rs"]
mod data;
#[path = "../../../../backend/src/control/hub.rs"]
mod hub;
#[path = "../../../../backend/src/control/jobs.rs"]
mod jobs;
#[path = "../../../../backend/src/control/json.rs"]
mod json;
#[path = "../../../../backend/src/control/listen.rs"]
mod listen;
#[path = "../../../../backend/src/control/outbox.rs"]
mod outbox;
#[path = "../../../../backend/src/control/protocol.rs"]
mod protocol;
#[path = "../../../../backend/src/control/server.rs"]
mod server;
#[path = "../../../../backend/src/control/session.rs"]
mod session;
#[path = "../../../../backend/src/control/stream.rs"]
mod stream;
#[path = "../../../../backend/src/control/target.rs"]
mod target;
#[path = "../../../../backend/src/control/views.rs"]
mod views;

pub mod client;

pub(crate) use listen::ListenError;
pub(crate) use server::ControlServer;
pub(crate) use target::Target;
