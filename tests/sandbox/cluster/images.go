package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// forgetContainers removes the containers of an earlier cluster from containerd's records, below its root directory dir,
// so that only images are left: containerd would try to recover them and the kubelet to clean them up. containerd must
// not run. Its garbage collector then removes what belonged to them. The records are containerd's published metadata
// schema, version 1: v1/<namespace>/{containers,sandboxes,leases,...}.
func forgetContainers(dir string) error {
	path := filepath.Join(dir, "io.containerd.metadata.v1.bolt", "meta.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bolt.Open(path, 0o644, &bolt.Options{Timeout: 2 * time.Second})
	if err != nil {
		return fmt.Errorf("opening containerd's records: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		v1 := tx.Bucket([]byte("v1"))
		if v1 == nil {
			return nil
		}
		namespace := v1.Bucket([]byte("k8s.io"))
		if namespace == nil {
			return nil
		}
		for _, kind := range []string{"containers", "sandboxes", "leases"} {
			if err := namespace.DeleteBucket([]byte(kind)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
				return fmt.Errorf("removing old %s: %w", kind, err)
			}
		}
		return nil
	})
	if closed := db.Close(); err == nil {
		err = closed
	}
	return err
}
