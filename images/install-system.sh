#!/bin/sh
# install-system.sh: makes the system layer from what earlier stages put into /packages and /opt/navarch-python.
set -eu
export DEBIAN_FRONTEND=noninteractive

# Services must not start while packages are being configured.
made_policy=
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    made_policy=1
fi
if ls /packages/*.deb >/dev/null 2>&1; then
    apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends /packages/*.deb
fi
[ -z "$made_policy" ] || rm -f /usr/sbin/policy-rc.d
rm -rf /packages /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log /var/log/alternatives.log

# Host keys are made when a container starts, never in an image.
rm -f /etc/ssh/ssh_host_*
mkdir -p /run/sshd /run/navarch /root/.ssh /workspace
chmod 700 /root/.ssh
chmod 755 /run/sshd /run/navarch
# Setting the login uid needs a capability that containers lack: a login must not fail for that.
sed -i -E 's/^(session\s+)required(\s+pam_loginuid\.so)/\1optional\2/' /etc/pam.d/sshd
# No message of the day (Ubuntu's runs a dozen scripts for every login).
sed -i -E 's/^(session\s+optional\s+pam_motd\.so)/# \1/' /etc/pam.d/sshd
[ -e /etc/default/locale ] || echo 'LANG=C.UTF-8' > /etc/default/locale

# Network settings and certificate authorities that the builder asked to keep (none by default).
tar -C / --no-same-owner -xf /navarch/keep.tar
if [ -d /usr/local/share/ca-certificates/navarch ] && command -v update-ca-certificates >/dev/null; then
    update-ca-certificates
fi

# A Python brought along: add only those of its libraries that this base can't find.
if [ -d /opt/navarch-python/bin ]; then
    missing=/opt/navarch-python/lib/missing
    mkdir -p "$missing"
    known=$(ldconfig -p)
    for library in /opt/navarch-python/bundled/*; do
        case $known in *"${library##*/} "*) ;; *) mv "$library" "$missing/" ;; esac
    done
    rm -rf /opt/navarch-python/bundled
    { echo /opt/navarch-python/lib; echo "$missing"; } > /etc/ld.so.conf.d/zz-navarch-python.conf
    ldconfig
    /opt/navarch-python/bin/python3 -c 'import bz2, ctypes, lzma, sqlite3, ssl, zlib; print("navarch: Python works on this base")'
else
    rmdir /opt/navarch-python
fi

# IDEs start `python` and `pip` from the default PATH. The base's own come first: people work in it.
for name in python pip; do
    [ ! -e "/usr/local/bin/$name" ] || continue
    for candidate in "/opt/conda/bin/$name" "/usr/bin/${name}3"; do
        if [ -x "$candidate" ]; then ln -s "$candidate" "/usr/local/bin/$name"; break; fi
    done
done
rm -rf /navarch
