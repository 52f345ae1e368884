package sign

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// ErrKey is wrapped by errors about a key or its password: missing, malformed, or not belonging together.
var ErrKey = errors.New("signing key")

// Names of the two files of a key pair, as cosign names them.
const (
	PrivateKeyFile = "cosign.key"
	PublicKeyFile  = "cosign.pub"
)

// defaultPasswordEnv is the variable that cosign itself reads.
const defaultPasswordEnv = "COSIGN_PASSWORD"

// Key is an encrypted cosign private key and where its password is.
type Key struct {
	// File is the private key as cosign generate-key-pair writes it.
	File string `json:"file,omitempty"`
	// PEM is the content of such a file, used instead of File. Never marshalled.
	PEM []byte `json:"-"`
	// PasswordFile holds the password; one line end after it does not count. Default: PasswordEnv is used.
	PasswordFile string `json:"passwordFile,omitempty"`
	// PasswordEnv names the environment variable with the password. Default COSIGN_PASSWORD.
	PasswordEnv string `json:"passwordEnv,omitempty"`
	// Password is the password itself, used before the others. Never marshalled.
	Password []byte `json:"-"`
}

// PublicKey is the key that signatures are verified with.
type PublicKey struct {
	// File is a PEM file, as cosign generate-key-pair writes it.
	File string `json:"file,omitempty"`
	// PEM is the content of such a file, used instead of File.
	PEM []byte `json:"pem,omitempty"`
}

// GenerateKeyPair writes a new ECDSA P-256 key pair to cosign.key (encrypted with the password, readable by the owner
// alone) and cosign.pub in dir. It does not replace existing files: losing a private key loses everything it signed for.
func GenerateKeyPair(dir string, password []byte) error {
	pair, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return fmt.Errorf("generating a key pair: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	private := filepath.Join(dir, PrivateKeyFile)
	if err := writeNew(private, pair.PrivateBytes, 0o600); err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, PublicKeyFile), pair.PublicBytes, 0o644); err != nil {
		// A private key without its public half would block the next attempt.
		return errors.Join(err, os.Remove(private))
	}
	return nil
}

// Public is the public half of the key, in PEM. Errors wrap ErrKey.
func (k Key) Public() ([]byte, error) {
	signer, err := k.load()
	if err != nil {
		return nil, err
	}
	public, err := signer.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, k.origin(), err)
	}
	return cryptoutils.MarshalPublicKeyToPEM(public)
}

func writeNew(path string, content []byte, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %s exists already and is not replaced; move it away first", ErrKey, path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("%w: writing %s: %w", ErrKey, path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// load decrypts the key.
func (k Key) load() (signature.SignerVerifier, error) {
	content := k.PEM
	if len(content) == 0 {
		if k.File == "" {
			return nil, fmt.Errorf("%w: none given; pass the private key that cosign generate-key-pair wrote", ErrKey)
		}
		var err error
		if content, err = os.ReadFile(k.File); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	}
	block, _ := pem.Decode(content)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%w: %s is no PEM file", ErrKey, k.origin())
	case block.Type == "PUBLIC KEY":
		return nil, fmt.Errorf("%w: %s is a public key; signing takes the private one, %s", ErrKey, k.origin(), PrivateKeyFile)
	case block.Type != cosign.CosignPrivateKeyPemType && block.Type != cosign.SigstorePrivateKeyPemType:
		return nil, fmt.Errorf("%w: %s is a %q, not an encrypted cosign key; import it with cosign import-key-pair", ErrKey, k.origin(), block.Type)
	}
	password, source, err := k.password()
	if err != nil {
		return nil, err
	}
	signer, err := cosign.LoadPrivateKey(content, password, nil)
	if err != nil {
		// The library's errors do not tell a wrong password from a damaged file; neither can we.
		return nil, fmt.Errorf("%w: %s cannot be decrypted with the password from %s: wrong password, or a damaged file", ErrKey, k.origin(), source)
	}
	return signer, nil
}

// password returns the password and, for messages, where it came from.
func (k Key) password() (password []byte, source string, err error) {
	if k.Password != nil {
		return k.Password, "the caller", nil
	}
	if k.PasswordFile != "" {
		content, err := os.ReadFile(k.PasswordFile)
		if err != nil {
			return nil, "", fmt.Errorf("%w: reading its password: %w", ErrKey, err)
		}
		content = bytes.TrimSuffix(content, []byte("\n"))
		return bytes.TrimSuffix(content, []byte("\r")), k.PasswordFile, nil
	}
	variable := k.PasswordEnv
	if variable == "" {
		variable = defaultPasswordEnv
	}
	value, set := os.LookupEnv(variable)
	if !set {
		return nil, "", fmt.Errorf("%w: no password for %s; give a password file or set %s (empty for a key without password)", ErrKey, k.origin(), variable)
	}
	return []byte(value), "$" + variable, nil
}

func (k Key) origin() string {
	if k.File != "" && len(k.PEM) == 0 {
		return k.File
	}
	return "the private key"
}

func (k PublicKey) origin() string {
	if k.File != "" && len(k.PEM) == 0 {
		return k.File
	}
	return "the public key"
}

// load parses the key.
func (k PublicKey) load() (signature.Verifier, error) {
	content := k.PEM
	if len(content) == 0 {
		if k.File == "" {
			return nil, fmt.Errorf("%w: no public key to verify with; pass %s", ErrKey, PublicKeyFile)
		}
		var err error
		if content, err = os.ReadFile(k.File); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(content)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is no public key in PEM form", ErrKey, k.origin())
	}
	verifier, err := signature.LoadVerifierWithOpts(public, *cosign.GetDefaultLoadOptions(nil)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, k.origin(), err)
	}
	return verifier, nil
}

// keyID is the fingerprint of the public key.
func keyID(provider signature.PublicKeyProvider) (string, error) {
	public, err := provider.PublicKey()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrKey, err)
	}
	return fingerprint(public)
}

func fingerprint(public crypto.PublicKey) (string, error) {
	der, err := cryptoutils.MarshalPublicKeyToDER(public)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrKey, err)
	}
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
