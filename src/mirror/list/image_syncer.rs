use super::node::Node;
use super::read::Reader;
use crate::error::Result;

pub(super) fn read(_: &Node, _: &mut Reader<'_>) -> Result<()> {
    Ok(())
}
