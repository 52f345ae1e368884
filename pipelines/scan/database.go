package scan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// database is the vulnerability database in the cache. Trivy downloads it; this decides when, and vouches for it.
//
// Trivy by itself asks for a new database when the old one says that it is due. Here the registry is asked for the
// digest instead: one small request, and a database that was replaced is never mistaken for the one in the cache.
type database struct {
	dir      string
	registry registry
	options  Options

	// fresh is true when the cached database is the one to use; source is then, or after the download, where it is from.
	fresh  bool
	source source
}

// source is kept beside the database and says what it is a copy of.
type source struct {
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
	// Size of trivy.db in bytes: a copy that was cut short maps to memory that is not there and kills the process.
	Size int64 `json:"size"`
}

// metadata is what Trivy keeps beside the database.
type metadata struct {
	Version   int
	UpdatedAt time.Time
}

func (d *database) file() string       { return filepath.Join(d.dir, "trivy.db") }
func (d *database) sourceFile() string { return filepath.Join(d.dir, "greenlight-source.json") }

// prepare decides whether the cached database is good, and removes it if it is not.
func (d *database) prepare(ctx context.Context) error {
	cached, err := d.cached()
	if err != nil {
		return err
	}
	if d.options.SkipDatabaseUpdate {
		if _, err := os.Stat(d.file()); err != nil {
			return fmt.Errorf("there is no vulnerability database in %s and updating is switched off; put trivy.db and metadata.json there, or drop --skip-db-update", d.dir)
		}
		d.fresh, d.source = true, cached
		return nil
	}
	repositories := d.options.DatabaseRepositories
	if len(repositories) == 0 {
		repositories = defaultDatabaseRepositories()
	}
	var problems []error
	for _, repository := range repositories {
		digest, err := d.registry.resolve(ctx, repository)
		if err != nil {
			problems = append(problems, fmt.Errorf("looking up the vulnerability database %s: %w", repository, err))
			continue
		}
		d.source = source{Repository: repository, Digest: digest.DigestStr()}
		if cached.Digest == d.source.Digest {
			d.fresh, d.source = true, cached
			return nil
		}
		fmt.Fprintf(d.options.Log, "downloading the vulnerability database %s\n", repository)
		// Without its metadata Trivy takes the database for missing; without the source a crash leaves it suspect.
		return d.remove()
	}
	if cached.Digest != "" {
		// A registry that is down is no reason not to scan while the age limit holds.
		fmt.Fprintf(d.options.Log, "%v; using the database in the cache\n", problems[0])
		d.fresh, d.source = true, cached
		return nil
	}
	return problems[0]
}

// cached reads what the cached database is a copy of; the zero source if there is none that can be trusted.
func (d *database) cached() (source, error) {
	data, err := os.ReadFile(d.sourceFile())
	if errors.Is(err, os.ErrNotExist) {
		return source{}, nil
	}
	if err != nil {
		return source{}, fmt.Errorf("reading the vulnerability database's source: %w", err)
	}
	var s source
	if json.Unmarshal(data, &s) != nil {
		return source{}, nil
	}
	info, err := os.Stat(d.file())
	if err != nil {
		return source{}, nil
	}
	if info.Size() != s.Size {
		if d.options.SkipDatabaseUpdate {
			return source{}, fmt.Errorf("the vulnerability database %s is damaged: it has %d bytes instead of %d; put a good copy there, or drop --skip-db-update", d.file(), info.Size(), s.Size)
		}
		return source{}, nil
	}
	return s, nil
}

func (d *database) remove() error {
	for _, path := range []string{d.sourceFile(), filepath.Join(d.dir, "metadata.json"), d.file()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing the old vulnerability database: %w", err)
		}
	}
	return nil
}

// confirm checks the age of the database that is open now and records its source.
func (d *database) confirm() (Database, error) {
	var m metadata
	data, err := os.ReadFile(filepath.Join(d.dir, "metadata.json"))
	if err != nil {
		return Database{}, fmt.Errorf("reading the vulnerability database's metadata: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil || m.UpdatedAt.IsZero() {
		return Database{}, fmt.Errorf("the vulnerability database in %s does not say how old it is; replace it", d.dir)
	}
	// A database put there by hand has no source and gets none: it is not known to be whole or whose it is.
	if !d.fresh {
		info, err := os.Stat(d.file())
		if err != nil {
			return Database{}, fmt.Errorf("looking at the vulnerability database: %w", err)
		}
		d.source.Size = info.Size()
		if err := writeJSON(d.sourceFile(), d.source); err != nil {
			return Database{}, err
		}
	}
	age := time.Since(m.UpdatedAt)
	if limit := d.options.MaxDatabaseAge; age > limit && !d.options.AllowOldDatabase {
		return Database{}, fmt.Errorf("the vulnerability database is %s old (of %s), more than the %s allowed; update %s, or allow it with --allow-old-db",
			days(age), m.UpdatedAt.Format(time.DateOnly), days(limit), d.where())
	}
	return Database{Repository: d.source.Repository, UpdatedAt: m.UpdatedAt.UTC()}, nil
}

func (d *database) where() string {
	if d.source.Repository != "" {
		return d.source.Repository
	}
	return d.dir
}

func days(age time.Duration) string {
	if age < 48*time.Hour {
		return age.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(age.Hours()/24))
}
