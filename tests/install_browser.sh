# Install Debian's Chromium where there is no browser and the rights to do so; otherwise the tests of
# the page say why they are skipped.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if ! command -v apt-get >/dev/null 2>&1; then
    echo "No Chromium or Chrome, and no apt-get to install one: tests of the page will be skipped."
elif [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq chromium
elif sudo -n true 2>/dev/null; then
    sudo -n apt-get update -qq && sudo -n apt-get install -y -qq chromium
else
    echo "No Chromium or Chrome, and no rights to install one: tests of the page will be skipped."
fi
