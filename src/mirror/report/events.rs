//! Adds the results of images to a report.

use super::{ImageId, RunReport};
use crate::error::Error;
use crate::mirror::job::Job;
use crate::mirror::run::Event;

impl RunReport {
    /// Adds an event to the report. Returns a failure, which is printed at once. Skipped images are reported at the
    /// end, since they may be the rest of the list.
    pub(crate) fn add_event(&mut self, event: Event) -> Option<(ImageId, Error)> {
        match event {
            Event::Copied(job, report) => {
                self.add(image_id(&job), Ok(*report));
                None
            }
            Event::Compared(..) | Event::Expected(_) => None,
            Event::Failed(job, error) => {
                self.add(image_id(&job), Err(&error));
                Some((image_id(&job), error))
            }
            Event::Skipped(job, why) => {
                self.skip(image_id(&job), &why);
                None
            }
            Event::Unknown { line, source, error, skipped } => {
                let which = ImageId { source: source.to_string(), destination: String::new(), line };
                if skipped {
                    self.skip(which, &error);
                    return None;
                }
                self.add(which.clone(), Err(&error));
                Some((which, error))
            }
        }
    }
}

fn image_id(job: &Job) -> ImageId {
    ImageId { source: job.from(), destination: job.to(), line: job.line }
}
