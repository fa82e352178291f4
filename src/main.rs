//! A minimal main of the branch `server`, to try `serve`; the real one is another's.

use clap::Parser as _;

#[derive(clap::Parser)]
enum Command {
    Serve(transload::cli::serve::Args),
}

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let Command::Serve(args) = Command::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    match runtime.block_on(transload::cli::serve::run(args, stop)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            std::process::ExitCode::from(error.exit_code())
        }
    }
}
