#include "results.h"

#include "errors.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const int64_t SYNC_SECONDS = 5;
static const size_t MOST_LINE = 1 << 24;  // as pipeline/core/jsonl.py

static std::string line_of(const Json & value) {
    return value.dump() + "\n";
}

ResultsFile::ResultsFile(const std::string & path, const Json & header, const std::set<std::string> & wanted)
    : path(path), wanted(wanted) {
    open_file();
    try {
        resume(header);
        if (length == 0) {
            write_line(line_of(header));
        }
    } catch (...) {
        close(handle);
        throw;
    }
}

ResultsFile::~ResultsFile() {
    fsync(handle);
    close(handle);
}

void ResultsFile::refuse(const std::string & what) const {
    throw UserError(shown(path) + " " + what);
}

void ResultsFile::open_file() {
    handle = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
    if (handle < 0) {
        refuse(std::string("cannot be written: ") + std::strerror(errno) + "; give another path");
    }
    struct stat about;
    const bool regular = fstat(handle, &about) == 0 && S_ISREG(about.st_mode);
    if (!regular || flock(handle, LOCK_EX | LOCK_NB) != 0) {
        close(handle);
        refuse(regular ? "is being written by another runner: wait for it, or give another path"
                       : "is not a regular file: give another path");
    }
}

// What stands in the file stays as far as it is whole; a torn last line is cut off.
void ResultsFile::resume(const Json & header) {
    const std::unique_ptr<FILE, int (*)(FILE *)> file(fdopen(dup(handle), "rb"), fclose);
    std::string line;
    size_t number = 0;
    for (int letter; file && (letter = getc_unlocked(file.get())) != EOF;) {
        line += (char) letter;
        if (line.size() > MOST_LINE) {
            refuse("line " + std::to_string(number + 1) + " is too long: give another path");
        }
        if (letter != '\n') {
            continue;
        }
        number++;
        if (number == 1) {
            check_header(line, header);
        } else if (!take(line, number)) {
            line.clear();
            continue;  // the closing line, which is not hashed
        }
        hash.update(line.data(), line.size());
        length += line.size();
        line.clear();
    }
    if (!file || ferror(file.get())) {
        refuse("cannot be read: give another path");
    }
    if (length == 0 && !line.empty() && line_of(header).rfind(line, 0) != 0) {
        refuse("is not a results file: give another path");
    }
    if (!closed && ftruncate(handle, (off_t) length) != 0) {
        refuse(std::string("cannot be written: ") + std::strerror(errno));
    }
    lseek(handle, 0, SEEK_END);
}

void ResultsFile::check_header(const std::string & line, const Json & header) const {
    const Json found = Json::parse(line, nullptr, false);
    if (!found.is_object() || !found.contains("schema_version") || !found.contains("side")) {
        refuse("is not a results file (its first line is not a header): give another path");
    }
    for (const auto & item : header.items()) {
        const auto there = found.find(item.key());
        if (there == found.end() || *there != item.value()) {
            refuse("holds rows of another run, its header's " + item.key() + " is not this run's: give another path, or"
                   " delete it to begin anew");
        }
    }
    if (found.size() != header.size()) {
        refuse("holds rows of another run: give another path, or delete it to begin anew");
    }
}

// Whether a line is a row of this run; false for the closing line. Raises UserError where it is neither.
bool ResultsFile::take(const std::string & line, size_t number) {
    const std::string again = "; delete it to begin anew";
    const std::string where = "line " + std::to_string(number) + " ";
    const Json found = Json::parse(line, nullptr, false);
    if (closed || !found.is_object()) {
        refuse(where + (closed ? "stands behind the closing line" : "is not a row") + again);
    }
    const Json & kind = found.value("kind", Json());
    if (kind == "end") {
        if (found.value("rows", Json()) != keys.size() || found.value("sha256", Json()) != hash.hex() ||
            keys.size() != wanted.size()) {
            refuse("was changed after it was written: its closing line is not of these rows" + again);
        }
        closed = true;
        return false;
    }
    const Json key = found.value("key", Json());
    if (!key.is_string() || !wanted.count(key.get<std::string>()) || !keys.insert(key.get<std::string>()).second) {
        refuse(where + "is of a picture that is not in the list, or has a row already" + again);
    }
    return true;
}

// In one go, so that a kill leaves a torn last line at most. A disk that is full takes the line back.
void ResultsFile::write_line(const std::string & line) {
    size_t done = 0;
    while (done < line.size()) {
        const ssize_t count = write(handle, line.data() + done, line.size() - done);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) {
            const std::string why = std::strerror(errno);
            if (ftruncate(handle, (off_t) length) != 0) {
                // The torn line is dropped by the next run.
            }
            refuse("cannot be written: " + why + "; the rows so far stay, run the same command again");
        }
        done += (size_t) count;
    }
    hash.update(line.data(), line.size());
    length += line.size();
}

void ResultsFile::append(const std::string & key, const Json & row) {
    write_line(line_of(row));
    keys.insert(key);
    const int64_t now = (int64_t) std::time(nullptr);
    if (now - synced >= SYNC_SECONDS) {
        fsync(handle);
        synced = now;
    }
}

void ResultsFile::finish() {
    if (!closed && keys.size() == wanted.size()) {
        write_line(line_of({{"kind", "end"}, {"rows", keys.size()}, {"sha256", hash.hex()}}));
        closed = true;
    }
}
