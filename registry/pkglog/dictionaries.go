package pkglog

// The fixed texts that deltas copy from: what index lines and module versions
// have in common. Changing one byte makes old logs unreadable: a better text
// needs a new payload form.

var cargoDictionary = newDictionary(
	cargoNames +
		`{"name":"","vers":"1.0.0","deps":[{"name":"serde","req":"^1.0","features":["derive"],"optional":true,"default_features":true,"target":null,"kind":"normal"},` +
		`{"name":"serde_json","req":"^1.0","features":[],"optional":false,"default_features":true,"target":null,"kind":"dev"},` +
		`{"name":"cc","req":"^1.0","features":[],"optional":false,"default_features":false,"target":"cfg(windows)","kind":"build","package":""},` +
		`{"name":"libc","req":"^0.2","features":[],"optional":false,"default_features":true,"target":"cfg(unix)","kind":"normal"}],` +
		`"cksum":"","features":{"default":["std"],"std":["alloc"],"alloc":[],"nightly":[],"full":["default"],"derive":["dep:"]},` +
		`"yanked":false,"links":null,"v":2,"features2":{"serde":["dep:serde"]},"rust_version":"1.70","pubtime":"2025-01-01T00:00:00Z"}` +
		`{"name":"","vers":"0.1.0","deps":[],"cksum":"`)

const cargoNames = `"req":"=0.1.0""req":"~1.0""req":">=1""req":"*""req":"^2.0""req":"^0.1.0""req":"^0.2""req":"^0.3""req":"^0.4""req":"^0.5""req":"^0.8""req":"^0.10""req":"^1"` +
	`{"name":"rand{"name":"log{"name":"anyhow{"name":"thiserror{"name":"tokio{"name":"clap{"name":"regex{"name":"chrono{"name":"lazy_static{"name":"syn{"name":"quote` +
	`{"name":"proc-macro2{"name":"futures{"name":"once_cell{"name":"tracing{"name":"reqwest{"name":"async-trait{"name":"bytes{"name":"url{"name":"uuid{"name":"env_logger` +
	`{"name":"itertools{"name":"bitflags{"name":"criterion{"name":"tempfile{"name":"num-traits{"name":"base64{"name":"hex{"name":"sha2{"name":"parking_lot{"name":"byteorder` +
	`{"name":"smallvec{"name":"indexmap{"name":"hyper{"name":"toml{"name":"rayon{"name":"nom{"name":"winapi{"name":"wasm-bindgen{"name":"js-sys{"name":"web-sys{"name":"getrandom` +
	`{"name":"crossbeam{"name":"time{"name":"futures-util{"name":"pin-project{"name":"http{"name":"serde_derive{"name":"cfg-if{"name":"memchr{"name":"semver{"name":"trybuild` +
	`{"name":"proptest{"name":"quickcheck{"name":"strum{"name":"hashbrown{"name":"ahash{"name":"tokio-util{"name":"pretty_assertions{"name":"assert_cmd{"name":"rustversion` +
	`"features":["full"]"features":["macros","rt-multi-thread"]"features":["derive"]"features":["std"]"features":["extra-traits"]"target":"cfg(target_arch = \"wasm32\")"` +
	`"target":"cfg(not(windows))""target":"cfg(target_os = \"macos\")""target":"cfg(target_os = \"linux\")""target":"x86_64-pc-windows-msvc"`

var goDictionary = newDictionary(
	`github.com/stretchr/testify v1.8.4 github.com/google/uuid v1.6.0 github.com/pkg/errors v0.9.1 github.com/spf13/cobra v1.8.0 github.com/spf13/pflag v1.0.5 // indirect` +
		"\n\tgithub.com/davecgh/go-spew v1.1.1 // indirect\n\tgithub.com/pmezard/go-difflib v1.0.0 // indirect\n\tgopkg.in/yaml.v3 v3.0.1 // indirect" +
		"\n\tgolang.org/x/sys v0.20.0 // indirect\n\tgolang.org/x/text v0.14.0 // indirect\n\tgolang.org/x/net v0.20.0 // indirect\n\tgolang.org/x/crypto v0.18.0 // indirect" +
		"\n\tgolang.org/x/sync v0.6.0\n\tgolang.org/x/tools v0.17.0\n\tgolang.org/x/mod v0.14.0\n\tgoogle.golang.org/protobuf v1.33.0 // indirect\n\tgoogle.golang.org/grpc v1.60.0" +
		"\n\tgithub.com/cespare/xxhash/v2 v2.2.0 // indirect\n\tgithub.com/prometheus/client_golang v1.18.0\n\tgithub.com/golang/protobuf v1.5.3\n\tk8s.io/api v0.29.0\n\tgopkg.in/yaml.v2 v2.4.0" +
		"\n\tgithub.com/go-logr/logr v1.4.1\n\tgithub.com/sirupsen/logrus v1.9.3\n\tgo.uber.org/zap v1.26.0\n\tgithub.com/gorilla/mux v1.8.1\n)\n\nreplace (\n\nretract [v0.0.0\nexclude toolchain go1.22.0\n" +
		`{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z","Origin":{"VCS":"git","URL":"https://github.com/","Subdir":"","Hash":"","Ref":"refs/tags/v1.0.0","TagPrefix":"","TagSum":""}}` +
		"module github.com/\n\ngo 1.21\n\nrequire (\n\t")
