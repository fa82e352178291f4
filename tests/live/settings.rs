//! Which registries the live check uses, from variables of the environment.

use std::net::SocketAddr;

use transload::reference::{RegistryName, RepositoryName};

/// Variables without which the check does not run.
const REQUIRED: [&str; 4] =
    ["TRANSLOAD_LIVE_ACR", "TRANSLOAD_LIVE_ACR_USER", "TRANSLOAD_LIVE_ACR_PASSWORD", "TRANSLOAD_LIVE_PREFIX"];

/// The registries, and the accounts there. Not `Debug`, since it holds passwords.
pub struct Settings {
    /// The login server of an Azure Container Registry.
    pub acr: String,
    pub acr_account: Account,
    /// All repositories of the check are below it.
    pub prefix: String,
    pub hub: Hub,
    pub network: Network,
}

/// Whether Docker Hub is used.
pub enum Hub {
    /// `hello-world` comes from Microsoft's registry.
    Unused,
    Anonymous,
    Account(Account),
}

pub struct Account {
    pub user: String,
    pub password: String,
}

/// How the registries are reached. The default is the system's names and the public authorities.
#[derive(Default)]
pub struct Network {
    /// Addresses in place of the system's.
    pub resolve: Vec<(String, SocketAddr)>,
    /// Files with further authorities.
    pub ca_files: Vec<String>,
}

impl Settings {
    /// Reads the variables.
    ///
    /// # Errors
    /// A sentence for the user. It has no password.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let missing: Vec<&str> = REQUIRED.into_iter().filter(|name| given(name).is_none()).collect();
        if !missing.is_empty() {
            let verb = if missing.len() == 1 { "is" } else { "are" };
            return Err(format!("the live check does not run: {} {verb} not set; see docs/testing.md", join(&missing)));
        }
        let required = |name: &str| given(name).unwrap_or_default();
        let acr = required(REQUIRED[0]).parse::<RegistryName>();
        let acr = acr.map_err(|_| invalid(REQUIRED[0], "the name of a registry, such as myregistry.azurecr.io"))?;
        let prefix = required(REQUIRED[3]).parse::<RepositoryName>();
        let prefix = prefix.map_err(|_| invalid(REQUIRED[3], "a path of repositories, such as transload-live"))?;
        Ok(Self {
            acr: acr.to_string(),
            acr_account: Account { user: required(REQUIRED[1]), password: required(REQUIRED[2]) },
            prefix: prefix.to_string(),
            hub: Hub::read(given("TRANSLOAD_LIVE_HUB").as_deref())?,
            network: Network::default(),
        })
    }
}

impl Hub {
    fn read(text: Option<&str>) -> Result<Self, String> {
        match text.map(|text| (text, text.split_once(':'))) {
            None => Ok(Self::Unused),
            Some(("anonymous", _)) => Ok(Self::Anonymous),
            Some((_, Some((user, password)))) if !user.is_empty() && !password.is_empty() => {
                Ok(Self::Account(Account { user: user.to_owned(), password: password.to_owned() }))
            }
            Some(_) => Err(invalid("TRANSLOAD_LIVE_HUB", "`anonymous` or USER:PASSWORD")),
        }
    }
}

/// The value is not shown: a password may stand in the wrong variable.
fn invalid(name: &str, wanted: &str) -> String {
    format!("the live check does not run: {name} is not {wanted}; see docs/testing.md")
}

/// `A`, `A and B`, `A, B and C`.
fn join(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ALL: [(&str, &str); 4] = [
        ("TRANSLOAD_LIVE_ACR", "myregistry.azurecr.io"),
        ("TRANSLOAD_LIVE_ACR_USER", "user"),
        ("TRANSLOAD_LIVE_ACR_PASSWORD", "hunter2"),
        ("TRANSLOAD_LIVE_PREFIX", "transload-live"),
    ];

    #[test]
    fn missing_variables_are_named() {
        let refusal = |variables: &[(&str, &str)]| read(variables).err().expect("a refusal");
        assert_eq!(
            refusal(&[]),
            "the live check does not run: TRANSLOAD_LIVE_ACR, TRANSLOAD_LIVE_ACR_USER, TRANSLOAD_LIVE_ACR_PASSWORD and \
             TRANSLOAD_LIVE_PREFIX are not set; see docs/testing.md"
        );
        assert_eq!(
            refusal(&ALL[..3]),
            "the live check does not run: TRANSLOAD_LIVE_PREFIX is not set; see docs/testing.md"
        );
        assert_eq!(
            refusal(&[&ALL[..3], &[("TRANSLOAD_LIVE_PREFIX", "")]].concat()),
            "the live check does not run: TRANSLOAD_LIVE_PREFIX is not set; see docs/testing.md"
        );
    }

    #[test]
    fn values_that_are_wrong_are_refused_without_a_password() {
        for (name, value) in [
            ("TRANSLOAD_LIVE_ACR", "https://myregistry.azurecr.io/hunter2"),
            ("TRANSLOAD_LIVE_PREFIX", "Upper/Case"),
            ("TRANSLOAD_LIVE_PREFIX", "../escape"),
            ("TRANSLOAD_LIVE_HUB", "hunter2"),
            ("TRANSLOAD_LIVE_HUB", ":hunter2"),
        ] {
            let others = ALL.into_iter().filter(|(known, _)| *known != name);
            let variables: Vec<(&str, &str)> = others.chain([(name, value)]).collect();
            let refusal = read(&variables).err().unwrap_or_else(|| panic!("{name}={value} is taken"));
            assert!(refusal.starts_with("the live check does not run: ") && refusal.contains(name), "{refusal}");
            assert!(!refusal.contains(value), "{refusal}");
        }
        assert!(read(&ALL).is_ok());
    }
}
