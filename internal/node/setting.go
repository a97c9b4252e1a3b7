package node

import "fmt"

// A SettingError says that a setting cannot be used. Flag is the one of pkgswarm
// serve, without its dashes; the setting may also come from the configuration file,
// the environment or, where none is given, from the machine's cargo and go.
type SettingError struct {
	Flag string
	Err  error
}

func (e *SettingError) Error() string { return fmt.Sprintf("--%s: %v", e.Flag, e.Err) }
func (e *SettingError) Unwrap() error { return e.Err }

// setting makes a [SettingError] of err, if it is one.
func setting(flag string, err error) error {
	if err == nil {
		return nil
	}
	return &SettingError{flag, err}
}
