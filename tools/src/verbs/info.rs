//! `pitstop info`: a container as a whole, or one volume and its layers.

use std::collections::HashMap;
use std::path::Path;

use pitstop_format::Holder;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::maps::{DiffTotals, Differences, MapTotals};
use crate::render::{self, Output};
use crate::session::{self, Access, Session, Want};
use crate::verbs::steps::Steps;
use crate::view::{ContainerView, LayerView, RelationStateView, RelationView, VolumeView};

/// How often counting begins, when commands give the volume another head meanwhile.
const TRIES: u32 = 8;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ContainerInfo {
    #[serde(flatten)]
    container: ContainerView,
    /// The daemon that serves it, if one does.
    held_by: Option<Holder>,
}

#[derive(Serialize)]
struct VolumeInfo {
    #[serde(flatten)]
    volume: VolumeView,
    /// How much of it is its own, and was written.
    map: MapTotals,
    /// How it and its source differ, unless their relation has ended.
    differences: Option<Differences>,
    /// Head first.
    layers: Vec<LayerView>,
}

/// Shows the container `path`, or its volume `name`.
pub(crate) fn run(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    match name {
        Some(name) => {
            let info = session::with(path, Access::Read, |session| {
                let volume = session.volume(name)?;
                let layers = chain(volume.head, session.layers()?);
                let map = count(session, name)?;
                let differences = differences(session, &volume)?;
                Ok(VolumeInfo { volume, map, differences, layers })
            })?;
            render::show(output, &info, |info| {
                render::volume_block(&info.volume, &info.map, info.differences, &info.layers)
            })
        }
        None => {
            let info = session::with(path, Access::Read, |session| {
                Ok(ContainerInfo { container: session.container()?, held_by: session.holder().cloned() })
            })?;
            render::show(output, &info, |info| {
                let holder = info.held_by.as_ref().map(|holder| format!("{} (pid {})", holder.program, holder.pid));
                render::container_block(&info.container, holder.as_deref())
            })
        }
    }
}

/// The volume's map, counted.
pub(super) fn count(session: &mut dyn Session, name: &str) -> Result<MapTotals> {
    let mut tries = 1;
    loop {
        let mut totals = MapTotals::default();
        match Steps::of_map(session, name, Want::Counts).try_for_each(|step| step.map(|step| totals.add(&step))) {
            Ok(()) => return Ok(totals),
            Err(Error::Moved { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// How a volume and its source differ; `None` if it has none, one of them is undefined, or commands come between all the time.
fn differences(session: &mut dyn Session, volume: &VolumeView) -> Result<Option<Differences>> {
    let is_ended = |relation: &RelationView| relation.state == RelationStateView::Split;
    let (Some(origin), Some(false)) = (&volume.origin, volume.relation.as_ref().map(is_ended)) else {
        return Ok(None);
    };
    if volume.undefined || session.volume(&origin.name)?.undefined {
        return Ok(None);
    }
    for _ in 0..TRIES {
        let mut totals = DiffTotals::default();
        let mut steps = Steps::of_difference(session, &origin.name, &volume.name, Want::Counts);
        match steps.try_for_each(|step| step.map(|step| totals.add(&step))) {
            Ok(()) => {
                let counts = totals.counts;
                let (to_secondary_bytes, to_primary_bytes) = (counts.a_data_bytes, counts.b_data_bytes);
                return Ok(Some(Differences { to_secondary_bytes, to_primary_bytes }));
            }
            Err(Error::Moved { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The layers from `head` down to the one without a parent.
fn chain(head: u64, layers: Vec<LayerView>) -> Vec<LayerView> {
    let mut by_id: HashMap<u64, LayerView> = layers.into_iter().map(|layer| (layer.id, layer)).collect();
    let mut next = Some(head);
    let mut chain = Vec::new();
    // Each layer is taken out once, so a damaged chain ends, too.
    while let Some(layer) = next.and_then(|id| by_id.remove(&id)) {
        next = layer.parent;
        chain.push(layer);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: u64, parent: Option<u64>) -> LayerView {
        let kind = "frozen".to_owned();
        LayerView { id, kind, parent, owner: None, size_bytes: 0, allocated_bytes: 0, children: 1 }
    }

    #[test]
    fn a_chain_is_shown_head_first_and_has_an_end() {
        let ids =
            |head, layers: &[LayerView]| chain(head, layers.to_vec()).iter().map(|layer| layer.id).collect::<Vec<_>>();
        let layers = [layer(1, None), layer(2, Some(1)), layer(3, Some(2)), layer(4, Some(2))];
        assert_eq!(ids(4, &layers), [4, 2, 1]);
        assert_eq!(ids(9, &layers), [0; 0]);
        assert_eq!(ids(1, &[layer(1, Some(2)), layer(2, Some(1))]), [1, 2]);
    }
}
