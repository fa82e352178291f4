//! Go's templates, as far as lists have them: regsync's `{{env "REGISTRY"}}/{{.Sync.Source}}`.
//!
//! Syntax: <https://pkg.go.dev/text/template>; functions: <https://regclient.org/usage/regsync/#templates>. What
//! would read files or change from run to run (`file`, `time`) is not evaluated, nor are conditions, loops and
//! variables.

use std::collections::VecDeque;

/// What a template may ask for.
pub(super) struct Scope<'a> {
    /// A field by its path, such as `.Sync.Source`.
    pub(super) field: &'a dyn Fn(&str) -> Option<String>,
    /// A variable of the environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

/// The text that a template makes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Evaluated {
    pub(super) text: String,
    /// Variables of the environment that are missing and have no default.
    pub(super) unset: Vec<String>,
}

/// Evaluates a template.
///
/// # Errors
/// The part that cannot be evaluated, as text for the user.
pub(super) fn evaluate(text: &str, scope: &Scope<'_>) -> Result<Evaluated, String> {
    let mut made = Evaluated::default();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or("a {{ without its }}")?;
        let (trim_left, action) = action.strip_prefix("- ").map_or((false, action), |action| (true, action));
        let (trim_right, action) = action.strip_suffix(" -").map_or((false, action), |action| (true, action));
        made.text.push_str(if trim_left { before.trim_end() } else { before });
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            let mut tokens = tokens(action)?;
            let result = pipeline(&mut tokens, scope, 0)?;
            if let Some(token) = tokens.front() {
                return Err(format!("{token:?} is not evaluated"));
            }
            made.text.push_str(&result.value.text());
            made.unset.extend(result.unset);
        }
        rest = if trim_right { after.trim_start() } else { after };
    }
    made.text.push_str(rest);
    Ok(made)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A function's name, or a field's path with its first dot.
    Name(String),
    Text(String),
    Number(usize),
    Pipe,
    Open,
    Close,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    List(Vec<String>),
    Number(usize),
}

/// A value, and the missing variables of the environment that it was made of.
#[derive(Debug)]
struct Operand {
    value: Value,
    unset: Vec<String>,
}

impl From<Value> for Operand {
    fn from(value: Value) -> Self {
        Self { value, unset: Vec::new() }
    }
}

impl Value {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::List(items) => format!("[{}]", items.join(" ")),
        }
    }

    /// Whether `default` replaces it.
    fn is_empty(&self) -> bool {
        *self == Self::Text(String::new()) || *self == Self::Number(0)
    }
}

fn tokens(action: &str) -> Result<VecDeque<Token>, String> {
    let mut tokens = VecDeque::new();
    let mut chars = action.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '|' => tokens.push_back(Token::Pipe),
            '(' => tokens.push_back(Token::Open),
            ')' => tokens.push_back(Token::Close),
            '"' | '`' => {
                let mut text = String::new();
                loop {
                    match chars.next() {
                        Some((_, end)) if end == c => break,
                        Some((_, '\\')) if c == '"' => match chars.next() {
                            Some((_, 'n')) => text.push('\n'),
                            Some((_, 't')) => text.push('\t'),
                            Some((_, escaped)) => text.push(escaped),
                            None => return Err("a text without its closing quote".to_owned()),
                        },
                        Some((_, other)) => text.push(other),
                        None => return Err("a text without its closing quote".to_owned()),
                    }
                }
                tokens.push_back(Token::Text(text));
            }
            _ if c == '.' || c == '_' || c.is_ascii_alphanumeric() => {
                let mut end = at + c.len_utf8();
                while let Some((next, _)) = chars.next_if(|(_, c)| *c == '.' || *c == '_' || c.is_ascii_alphanumeric())
                {
                    end = next + 1;
                }
                let word = &action[at..end];
                let number = word.parse().map(Token::Number);
                tokens.push_back(number.unwrap_or_else(|_| Token::Name(word.to_owned())));
            }
            _ => return Err(format!("`{action}` is not evaluated")),
        }
    }
    Ok(tokens)
}

/// `first arguments | second arguments`: each command gets the value before it as its last argument.
fn pipeline(tokens: &mut VecDeque<Token>, scope: &Scope<'_>, depth: usize) -> Result<Operand, String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} parentheses inside each other"));
    }
    let mut value = None;
    loop {
        value = Some(command(tokens, value, scope, depth)?);
        if tokens.front() == Some(&Token::Pipe) {
            tokens.pop_front();
        } else {
            return value.ok_or_else(|| "an empty {{ }}".to_owned());
        }
    }
}

fn command(
    tokens: &mut VecDeque<Token>,
    piped: Option<Operand>,
    scope: &Scope<'_>,
    depth: usize,
) -> Result<Operand, String> {
    let function = match tokens.front() {
        Some(Token::Name(name)) if !name.starts_with('.') => Some(name.clone()),
        _ => None,
    };
    if function.is_some() {
        tokens.pop_front();
    }
    let mut arguments = Vec::new();
    while let Some(token) = tokens.front() {
        if matches!(token, Token::Pipe | Token::Close) {
            break;
        }
        arguments.push(match tokens.pop_front() {
            Some(Token::Text(text)) => Value::Text(text).into(),
            Some(Token::Number(number)) => Value::Number(number).into(),
            Some(Token::Open) => {
                let value = pipeline(tokens, scope, depth + 1)?;
                if tokens.pop_front() != Some(Token::Close) {
                    return Err("a ( without its )".to_owned());
                }
                value
            }
            Some(Token::Name(path)) if path.starts_with('.') => {
                Value::Text((scope.field)(&path).ok_or_else(|| format!("`{path}` is not evaluated"))?).into()
            }
            Some(Token::Name(name)) => return Err(format!("`{name}` is not evaluated")),
            _ => return Err("an empty {{ }}".to_owned()),
        });
    }
    arguments.extend(piped);
    match function {
        Some(name) => call(&name, arguments, scope),
        None if arguments.len() == 1 => Ok(arguments.remove(0)),
        None => Err("an empty {{ }}".to_owned()),
    }
}

/// Calls a function. `env` finds out that a variable is missing; `default` keeps the missing variables of the
/// argument that it returns; every other function's result depends on all its arguments.
fn call(name: &str, mut arguments: Vec<Operand>, scope: &Scope<'_>) -> Result<Operand, String> {
    if name == "default" && arguments.len() == 2 {
        let replaced = arguments[1].value.is_empty();
        return Ok(arguments.swap_remove(usize::from(!replaced)));
    }
    let mut unset: Vec<String> = arguments.iter_mut().flat_map(|operand| operand.unset.drain(..)).collect();
    let values: Vec<Value> = arguments.into_iter().map(|operand| operand.value).collect();
    let value = match (name, &values[..]) {
        ("env", [Value::Text(variable)]) => Value::Text((scope.variable)(variable).unwrap_or_else(|| {
            unset.push(variable.clone());
            String::new()
        })),
        _ => apply(name, values)?,
    };
    Ok(Operand { value, unset })
}

/// The functions that regsync's documentation names, and those of Go's templates that make texts.
fn apply(name: &str, arguments: Vec<Value>) -> Result<Value, String> {
    let wrong = || format!("`{name}` has not the arguments that it takes");
    Ok(match (name, &arguments[..]) {
        ("lower", [Value::Text(text)]) => Value::Text(text.to_lowercase()),
        ("upper", [Value::Text(text)]) => Value::Text(text.to_uppercase()),
        ("split", [Value::Text(text), Value::Text(by)]) => Value::List(text.split(by).map(str::to_owned).collect()),
        ("join", [Value::List(items), Value::Text(between)]) => Value::Text(items.join(between)),
        ("index", [Value::List(items), Value::Number(at)]) => {
            Value::Text(items.get(*at).cloned().ok_or_else(|| format!("`index {at}` is past the end"))?)
        }
        ("json", [Value::Text(text)]) => Value::Text(serde_json::Value::from(text.as_str()).to_string()),
        ("print", _) => Value::Text(arguments.into_iter().map(Value::text).collect()),
        ("printf", [Value::Text(format), rest @ ..]) => Value::Text(printf(format, rest.to_vec()).ok_or_else(wrong)?),
        ("env" | "default" | "lower" | "upper" | "split" | "join" | "index" | "json" | "printf", _) => {
            return Err(wrong());
        }
        _ => return Err(format!("`{name}` is not evaluated")),
    })
}

/// `%s`, `%v` and `%d`; no widths.
fn printf(format: &str, arguments: Vec<Value>) -> Option<String> {
    let mut arguments = arguments.into_iter();
    let mut made = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => match chars.next()? {
                '%' => made.push('%'),
                's' | 'v' | 'd' => made.push_str(&arguments.next()?.text()),
                _ => return None,
            },
            c => made.push(c),
        }
    }
    arguments.next().is_none().then_some(made)
}

/// Parentheses inside each other. Each level takes stack.
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(text: &str) -> Result<Evaluated, String> {
        let field = |path: &str| (path == ".Sync.Source").then(|| "library/Nginx:1.27".to_owned());
        let variable = |name: &str| (name == "REGISTRY").then(|| "r.example.org".to_owned());
        evaluate(text, &Scope { field: &field, variable: &variable })
    }

    /// Templates and what Go makes of them.
    #[test]
    fn texts() {
        for (text, expected) in [
            ("plain", "plain"),
            ("{{env \"REGISTRY\"}}/nginx", "r.example.org/nginx"),
            ("{{ env `REGISTRY` }}/{{ .Sync.Source }}", "r.example.org/library/Nginx:1.27"),
            ("{{ .Sync.Source | lower }}", "library/nginx:1.27"),
            ("{{ upper (env \"REGISTRY\") }}", "R.EXAMPLE.ORG"),
            ("{{ env \"NONE\" | default \"fallback\" }}", "fallback"),
            ("{{ default \"fallback\" (env \"REGISTRY\") }}", "r.example.org"),
            ("{{ index (split .Sync.Source \"/\") 1 }}", "Nginx:1.27"),
            ("{{ join (split .Sync.Source \"/\") \"-\" }}", "library-Nginx:1.27"),
            ("{{ printf \"%s/%s\" (env \"REGISTRY\") .Sync.Source }}", "r.example.org/library/Nginx:1.27"),
            ("{{ print \"a\" \"b\" }}", "ab"),
            ("a {{- \" b\" -}} c", "a bc"),
            ("a{{/* nothing */}}b", "ab"),
        ] {
            let made = made(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(made, Evaluated { text: expected.to_owned(), unset: Vec::new() }, "{text}");
        }
        assert_eq!(made("{{env \"NONE\"}}/x").map(|made| made.unset), Ok(vec!["NONE".to_owned()]));
    }

    /// `default` excuses only the variable that it replaces.
    #[test]
    fn a_default_hides_no_other_missing_variable() {
        for (text, expected, unset) in [
            ("{{env \"A\"}}/{{env \"B\" | default \"x\"}}", "/x", &["A"][..]),
            ("{{env \"B\" | default \"x\"}}/{{env \"A\"}}", "x/", &["A"]),
            ("{{print (env \"A\") (env \"B\" | default \"x\")}}", "x", &["A"]),
            ("{{print (env \"B\" | default \"x\") (env \"A\")}}", "x", &["A"]),
            ("{{default (env \"A\") (env \"B\")}}", "", &["A"]),
            ("{{default (env \"A\") (env \"REGISTRY\")}}", "r.example.org", &[]),
            ("{{default (env \"REGISTRY\") (env \"A\")}}", "r.example.org", &[]),
            ("{{env \"A\" | upper | default \"x\"}}", "x", &[]),
            ("{{join (split (env \"A\") \",\") \"-\"}}", "", &["A"]),
        ] {
            let made = made(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let unset = unset.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(made, Evaluated { text: expected.to_owned(), unset }, "{text}");
        }
    }

    /// A list of 8 MiB may hold millions of parentheses.
    #[test]
    fn deep_parentheses_are_an_error_and_no_stack_overflow() {
        let nested = |depth: usize| format!("{{{{ {}\"a\"{} }}}}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(made(&nested(MAX_DEPTH)).map(|made| made.text), Ok("a".to_owned()));
        for text in [nested(MAX_DEPTH + 1), nested(1 << 20), format!("{{{{ {} }}}}", "(print ".repeat(1 << 20))] {
            assert_eq!(made(&text), Err("more than 32 parentheses inside each other".to_owned()));
        }
    }

    #[test]
    fn what_is_not_evaluated() {
        for (text, why) in [
            ("{{ time.Now }}", "`time.Now`"),
            ("{{ file \"/etc/passwd\" }}", "`file`"),
            ("{{ .Sync.Nothing }}", "`.Sync.Nothing`"),
            ("{{ .Values.x }}", "`.Values.x`"),
            ("{{ if true }}a{{ end }}", "`true`"),
            ("{{ $x := 1 }}", "$x"),
            ("{{ env }}", "arguments"),
            ("{{ env \"A }}", "closing quote"),
            ("{{ }}", "empty"),
            ("{{ (env \"A\" }}", "without its )"),
            ("{{ env \"REGISTRY\" ) }}", "Close"),
            ("{{ env \"A\"", "without its }}"),
            ("{{ printf \"%q\" \"a\" }}", "arguments"),
        ] {
            let error = made(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([a-z.{}|()\" `\\\\%-]|\\{\\{|\\}\\}|env |printf ){0,24}") {
            let _ = made(&text);
        }
    }
}
