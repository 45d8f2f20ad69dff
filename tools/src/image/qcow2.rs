//! Qcow2 images through library imago.
//!
//! Invariant: every header in a chain of backing files passes [`super::header`] before imago sees the file, other files
//! are opened for reading only, and the chain has an end. What the image maps to zeros, or to a hole of a file, is known
//! without reading. Does not: decide whether backing files may be followed (the user does).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::file::File as Storage;
use imago::format::Format;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::header::Header;
use super::{Backing, ImageFile, padded, raw};
use crate::copy::{Run, Sink, Source};
use crate::error::{Error, Result};

/// Longest chain of backing files.
const MAX_CHAIN_LEN: usize = 200;
/// Cluster length of the images written, in bytes: what qemu-img uses, too.
const CLUSTER_LEN: usize = 64 << 10;

/// A file of the chain, to look for holes in.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    file: File,
    /// Bytes in it.
    len: u64,
    /// Bytes up to which something may be mapped: the last cluster may be cut off.
    mapped_len: u64,
}

/// What the gate shares with its opener.
#[derive(Debug, Default)]
struct Chain {
    /// The files that make up the image.
    layers: Vec<Layer>,
    /// Why the gate stayed shut: imago passes errors on as text only.
    refusal: Option<Error>,
}

/// The chain, reachable from every gate.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Chain>>);

impl Shared {
    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `error` for the opener, and tells imago to give up.
    fn refuse(&self, error: Error) -> io::Error {
        let text = error.to_string();
        self.chain().refusal.get_or_insert(error);
        io::Error::other(text)
    }
}

/// A qcow2 image to read.
#[derive(Debug)]
pub(crate) struct Qcow2Source {
    path: PathBuf,
    image: FormatAccess<Storage>,
    shared: Shared,
}

impl Qcow2Source {
    /// Opens `file` as qcow2, and the files that it names if `backing` allows that.
    pub(crate) fn open(file: ImageFile, backing: Backing) -> Result<Self> {
        let path = file.path.clone();
        let shared = Shared::default();
        let header = Header::read(&file, backing)?;
        let failed = |source| {
            let refusal = shared.chain().refusal.take();
            refusal.unwrap_or_else(|| unreadable(&path)(source))
        };
        let storage = hand_over(&shared, file, Some(&header)).map_err(failed)?;
        let gate = Gate { allowed: backing, shared: shared.clone(), depth: 1 };
        let qcow2 = Qcow2::<Storage>::builder(storage).write(false).open(gate).map_err(failed)?;
        Ok(Self { image: FormatAccess::new(qcow2), shared, path })
    }

    /// Looks for holes where `storage` holds the data; an image that ends before its data is an error.
    fn run_in(&self, storage: &Storage, offset: u64, len: u64) -> Result<(Run, u64)> {
        let chain = self.shared.chain();
        let path = imago::Storage::get_filename(storage);
        let Some(layer) = chain.layers.iter().find(|layer| Some(&layer.path) == path.as_ref()) else {
            return Ok((Run::Data, len));
        };
        if offset.checked_add(len).is_none_or(|end| end > layer.mapped_len) {
            return Err(Error::Image {
                path: layer.path.clone(),
                problem: "the image is cut off: data lies beyond the end of the file".to_owned(),
                advice: "get a complete copy of the image".to_owned(),
            });
        }
        if offset >= layer.len {
            return Ok((Run::Zero, len));
        }
        let (run, run_len) = raw::run_of(&layer.file, &layer.path, offset, layer.len)?;
        if offset + run_len == layer.len {
            // What is missing of the last cluster reads as zeros, like a hole; whichever run it ends, it may join.
            return Ok((run, len));
        }
        Ok((run, run_len.min(len)))
    }
}

impl Source for Qcow2Source {
    fn len(&self) -> u64 {
        padded(self.image.size())
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        let rest = self.len() - offset;
        let (mapping, len) = self.image.get_mapping(offset, rest).map_err(unreadable(&self.path))?;
        match mapping {
            // Zeros, or the padding of a disk that does not end at a sector.
            Mapping::Zero { .. } => Ok((Run::Zero, len)),
            Mapping::Eof { .. } => Ok((Run::Zero, rest)),
            Mapping::Raw { storage, offset, .. } => self.run_in(storage, offset, len),
            // Compressed.
            _ => Ok((Run::Data, len)),
        }
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.image.read(buf, offset).map_err(unreadable(&self.path))
    }
}

/// Opens what an image names, if that is allowed.
#[derive(Debug)]
struct Gate {
    allowed: Backing,
    shared: Shared,
    depth: usize,
}

impl Gate {
    /// The path of a file that the image names, if it may name files.
    fn admit(&self, path: Option<PathBuf>) -> io::Result<PathBuf> {
        let path = path.ok_or_else(|| io::Error::other("an image names a file without a path"))?;
        if self.allowed == Backing::Refuse {
            return Err(self.shared.refuse(Error::Image {
                path,
                problem: "an image names this file, and may not".to_owned(),
                advice: "pass --allow-backing if the image is from somebody you trust".to_owned(),
            }));
        }
        Ok(path)
    }
}

impl ImplicitOpenGate<Storage> for Gate {
    fn open_format<F: FormatDriverBuilder<Storage>>(&mut self, builder: F) -> io::Result<FormatAccess<Storage>> {
        let path = self.admit(builder.get_image_path())?;
        if self.depth >= MAX_CHAIN_LEN {
            return Err(self.shared.refuse(Error::Image {
                path,
                problem: format!("the chain of backing files has more than {MAX_CHAIN_LEN} files, or is a circle"),
                advice: "flatten it first with `qemu-img convert`".to_owned(),
            }));
        }
        if F::FORMAT == Format::Qcow2 {
            // imago has the storage open already; it is judged through its path before any of it is used.
            let header = ImageFile::open(&path).and_then(|image| Header::read(&image, self.allowed));
            let header = header.map_err(|error| self.shared.refuse(error))?;
            for layer in self.shared.chain().layers.iter_mut().filter(|layer| layer.path == path) {
                layer.mapped_len = layer.len.next_multiple_of(header.cluster_len_bytes);
            }
        }
        let gate = Self { allowed: self.allowed, shared: self.shared.clone(), depth: self.depth + 1 };
        Ok(FormatAccess::new(builder.open(gate)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let path = self.admit(options.get_filename().map(Path::to_owned))?;
        let image = ImageFile::open(&path).map_err(|error| self.shared.refuse(error))?;
        hand_over(&self.shared, image, None)
    }
}

/// Hands `image` to imago, for reading, and keeps a handle to look for holes.
fn hand_over(shared: &Shared, image: ImageFile, header: Option<&Header>) -> io::Result<Storage> {
    let ImageFile { path, file, len_bytes } = image;
    let options = StorageOpenOptions::new().filename(&path).write(false);
    let mapped_len = header.map_or(len_bytes, |header| len_bytes.next_multiple_of(header.cluster_len_bytes));
    let kept = file.try_clone()?;
    let storage = Storage::from_open_file(file, options)?;
    let layers = &mut shared.chain().layers;
    if !layers.iter().any(|layer| layer.path == path) {
        layers.push(Layer { path, file: kept, len: len_bytes, mapped_len });
    }
    Ok(storage)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::ImageUnreadable { path: path.to_owned(), source }
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::ImageUnwritable { path: path.to_owned(), source }
}

/// A qcow2 image being written.
#[derive(Debug)]
pub(crate) struct Qcow2Sink {
    path: PathBuf,
    image: FormatAccess<Storage>,
}

impl Qcow2Sink {
    /// Makes the empty `file` a version 3 image of `len_bytes`; `path` is what messages call it.
    pub(crate) fn create(file: File, path: &Path, len_bytes: u64) -> Result<Self> {
        let failed = unwritable(path);
        let options = StorageOpenOptions::new().filename(path).write(true);
        let storage = Storage::from_open_file(file, options).map_err(&failed)?;
        let image = Qcow2CreateBuilder::<Storage>::new(storage)
            .size(len_bytes)
            .cluster_size(CLUSTER_LEN)
            .create_open(imago::DenyImplicitOpenGate::default(), |storage| Ok(Qcow2::builder(storage).backing(None)))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), image: FormatAccess::new(image) })
    }

    /// Writes out the tables; the caller syncs the file.
    pub(crate) fn finish(self) -> Result<()> {
        self.image.flush().map_err(unwritable(&self.path))
    }
}

impl Sink for Qcow2Sink {
    fn granularity(&self) -> usize {
        CLUSTER_LEN
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        self.image.write(buf, offset).map_err(unwritable(&self.path))
    }
}
