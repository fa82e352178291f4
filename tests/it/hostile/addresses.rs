//! Names and URLs that lead to private addresses or to another owner's token endpoint.
